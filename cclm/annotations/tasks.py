"""The benchmarks: which data sets each needs, and how their files are published. To add one: a reader, and a line here.

Numbers of rows are those of the published files, as their authors or IGLUE count them; none stands where no source that
could be read says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cclm.annotations.captions import (
    XM3600_LANGUAGES,
    read_aligned,
    read_coco,
    read_flickr30k,
    read_karpathy,
    read_wit,
    read_xm3600,
)
from cclm.annotations.layouts import EVERY, DataSet, FileKind, Split
from cclm.annotations.questions import read_cvqa, read_gqa, read_vqa
from cclm.annotations.refcoco import read_refcoco
from cclm.annotations.statements import read_statements, read_xvnli
from cclm.types import Language

_IGLUE: Final = "https://github.com/e-bug/iglue"
_TAG: Final = r"(?P<language>[a-z]{2,3})"
_TRANSLATED: Final = "annotations_(?P<translated>machine-translate)"
_FLICKR30K_IMAGES: Final = "Flickr30k's images: https://shannon.cs.illinois.edu/DenotationGraph/ (a form)"
_COCO_IMAGES: Final = "COCO's train2014 and val2014: https://cocodataset.org/#download"


def _shots(languages: tuple[Language, ...], rows: Mapping[str, int]) -> tuple[Split, ...]:
    """Return the splits of few-shot training, by number of shots."""
    return tuple(
        Split(f"train_{shots}", languages=languages, rows=count, is_needed=False) for shots, count in rows.items()
    )


XVNLI: Final = DataSet(
    name="XVNLI",
    folders=("XVNLI",),
    kinds=(
        FileKind(rf"annotations/{_TAG}/(?P<split>train|dev|test|train_\d+)\.jsonl", read_xvnli),
        FileKind(rf"{_TRANSLATED}/{_TAG}/(?P<split>dev|test)\.jsonl", read_xvnli),
    ),
    splits=(
        Split("train"),
        Split("dev"),
        Split("test", languages=("en", "ar", "es", "fr", "ru"), rows=1164),
        *_shots(("en", "ar", "es", "fr", "ru"), {"1": 3, "5": 18, "10": 39, "20": 75, "25": 90, "48": 168}),
    ),
    source=f"{_IGLUE}/tree/main/datasets/XVNLI",
    images=_FLICKR30K_IMAGES,
)

_XGQA_LANGUAGES: Final = ("en", "bn", "de", "id", "ko", "pt", "ru", "zh")
GQA: Final = DataSet(
    name="GQA",
    folders=("gqa", "GQA"),
    kinds=(
        FileKind(r"annotations/(?P<split>train|valid|testdev)\.json", read_gqa),
        FileKind(r"(?:annotations/)?testdev_balanced_questions\.json", read_gqa, split="testdev_questions"),
        FileKind(r"(?P<split>train|val|testdev)_balanced_questions\.json", read_gqa),
    ),
    splits=(
        Split("train"),
        Split("valid"),
        Split("testdev", rows=12578, is_needed=False),
    ),
    source=(
        "https://cs.stanford.edu/people/dorarad/gqa/download.html; the answers' indices, as pickles that are not read "
        f"here: {_IGLUE}/tree/main/datasets/gqa"
    ),
    images="GQA's images, from the first page",
    split_names={"val": "valid"},
    vocabulary=r"(?:annotations/)?trainval_(?:ans2label|label2ans)\.json",
)
XGQA: Final = DataSet(
    name="xGQA",
    folders=("xGQA", "xgqa"),
    kinds=(
        FileKind(rf"(?:annotations|data)/few_shot/{_TAG}/(?P<split>train_\d+|dev|test)\.json", read_gqa),
        FileKind(rf"(?:annotations|data)/zero_shot/testdev_balanced_questions_{_TAG}\.json", read_gqa, split="testdev"),
        FileKind(rf"{_TRANSLATED}/(?:.*/)?testdev_balanced_questions_{_TAG}(?:_gmt)?\.json", read_gqa, split="testdev"),
    ),
    splits=(
        Split("testdev", languages=_XGQA_LANGUAGES, rows=12578, is_needed=False),
        Split("test", languages=_XGQA_LANGUAGES, rows=9666),
        Split("dev", languages=_XGQA_LANGUAGES, rows=1422, is_needed=False),
        *_shots(_XGQA_LANGUAGES, {"1": 27, "5": 155, "10": 317, "20": 594, "25": 704, "48": 1490}),
    ),
    source="https://github.com/adapter-hub/xGQA",
)

NLVR2: Final = DataSet(
    name="NLVR2",
    folders=("nlvr2", "nlvr", "nlvr_en"),
    kinds=(
        FileKind(r"annotations/(?P<split>train|dev|test)\.jsonl", read_statements),
        FileKind(r"(?:data/)?(?P<split>train|dev|test1)\.json", read_statements),
        FileKind(r"(?:.*/)?nlvr2?_(?P<split>train|dev|test)\.json", read_statements),
    ),
    splits=(
        Split("train"),
        Split("dev", rows=6982),
        Split("test", rows=6967),
    ),
    source="https://github.com/lil-lab/nlvr/tree/master/nlvr2",
    images="NLVR2's images, by its form: https://lil.nlp.cornell.edu/nlvr/",
    split_names={"test1": "test"},
)
MARVL: Final = DataSet(
    name="MaRVL",
    folders=("marvl", "marvl-code"),
    kinds=(
        FileKind(rf"zero_shot/annotations/marvl-{_TAG}\.jsonl", read_statements),
        FileKind(rf"data/{_TAG}/annotations/marvl-[a-z]+\.jsonl", read_statements),
        FileKind(rf"zero_shot/{_TRANSLATED}/marvl-{_TAG}_gmt\.jsonl", read_statements),
        FileKind(rf"few_shot/annotations/marvl-{_TAG}_(?P<split>train\w+)\.jsonl", read_statements),
        FileKind(rf"marvl-{_TAG}_(?P<split>train\w+)\.json", read_statements),
        FileKind(rf"marvl-{_TAG}\.json", read_statements),
    ),
    splits=(
        Split(
            name="test",
            languages=("id", "sw", "ta", "tr", "zh"),
            rows={"id": 1128, "sw": 1108, "ta": 1242, "tr": 1180, "zh": 1012},
        ),
        *_shots(("id", "tr", "zh"), {"1": 4, "2": 8, "4": 16, "10": 40, "10x2": 80}),
    ),
    source="https://github.com/marvl-challenge/marvl-code",
    images="MaRVL's images: https://marvl-challenge.github.io/download",
    split_names={f"train{shots}": f"train_{shots}" for shots in ("1", "2", "4", "10", "10x2")},
)

FLICKR30K: Final = DataSet(
    name="Flickr30k",
    folders=("flickr30k",),
    kinds=(
        FileKind(r"annotations/(?P<split>train|valid|test)_ann\.jsonl", read_flickr30k),
        FileKind(r"(?:.*/)?results(?:_\d+)?\.(?:token|csv)", read_flickr30k, split="all"),
        FileKind(r"(?:.*/)?dataset_flickr30k\.json", read_karpathy, also_splits=("train", "val")),
    ),
    splits=(
        Split("train", rows=29000),
        Split("val", rows=1014),
        Split("test", rows=1000, is_needed=False),
    ),
    source=f"{_IGLUE}/tree/main/datasets/flickr30k",
    images=_FLICKR30K_IMAGES,
    split_names={"valid": "val"},
)
_XFLICKRCO_LANGUAGES: Final = ("en", "de", "es", "id", "ja", "ru", "tr", "zh")
XFLICKRCO: Final = DataSet(
    name="xFlickr&CO",
    folders=("xFlickrCO",),
    kinds=(
        FileKind(rf"annotations/{_TAG}/(?P<split>train|test|train_\w+)\.jsonl", read_flickr30k),
        FileKind(rf"{_TRANSLATED}/{_TAG}/(?P<split>train|test)_gmt\.jsonl", read_flickr30k),
    ),
    splits=(
        Split("test", languages=_XFLICKRCO_LANGUAGES, rows=2000),
        *_shots(_XFLICKRCO_LANGUAGES, {"1": 1, "5": 5, "10": 10, "25": 25, "50": 50, "100": 100, "100x5": 100}),
    ),
    source=f"{_IGLUE}/tree/main/datasets/xFlickrCO",
    images=f"{_FLICKR30K_IMAGES}; {_COCO_IMAGES}",
)

_WIT_ROWS: Final = {
    "en": 1000, "ar": 890, "bg": 860, "da": 891, "el": 570, "et": 874, "id": 901, "ja": 1000, "ko": 931, "tr": 721,
    "vi": 946,
}  # fmt: skip
WIT: Final = DataSet(
    name="WIT",
    folders=("wit",),
    kinds=(
        FileKind(rf"annotations(?:-bs64)?/(?P<split>train|val|test)_{_TAG}\.jsonl", read_wit),
        FileKind(rf"{_TRANSLATED}(?:-bs64)?/(?P<split>test)_{_TAG}_gmt\.jsonl", read_wit),
    ),
    splits=(
        Split("train", rows=500_000),
        Split("val", rows=4632),
        Split("test", languages=tuple(_WIT_ROWS), rows=_WIT_ROWS),
    ),
    source=f"{_IGLUE}/tree/main/datasets/wit",
    images="pixels by URL: https://www.kaggle.com/c/wikipedia-image-caption/data",
)

_MULTI30K_LANGUAGES: Final = ("en", "de", "fr", "cs")
MULTI30K: Final = DataSet(
    name="Multi30K",
    folders=("multi30k-dataset", "multi30k", "dataset"),
    kinds=(
        FileKind(rf"data/task1/raw/(?P<split>[a-z0-9_]+)\.{_TAG}(?:\.gz)?", read_aligned),
        FileKind(rf"data/task2/raw/(?P<split>[a-z0-9_]+\.\d)\.{_TAG}(?:\.gz)?", read_aligned),
        FileKind(rf"(?P<split>train|val|test_2016_flickr)\.{_TAG}\.json", read_flickr30k),
    ),
    splits=(
        Split("train", languages=_MULTI30K_LANGUAGES, rows=29000),
        Split("val", languages=_MULTI30K_LANGUAGES, rows=1014),
        Split("test_2016_flickr", languages=_MULTI30K_LANGUAGES, rows=1000),
        *(
            Split(f"{split}.{number}", languages=("en", "de"), rows=rows)
            for split, rows in (("train", 29000), ("val", 1014), ("test_2016", 1000))
            for number in range(1, 6)
        ),
    ),
    source="https://github.com/multi30k/dataset",
    companions=r"data/task\d/image_splits/\w+\.txt",
    images=_FLICKR30K_IMAGES,
)

COCO: Final = DataSet(
    name="MSCOCO",
    folders=("annotations", "coco", "mscoco", "mscoco-it", "coco-cn", "STAIR-captions", "stair_captions_v1.2"),
    kinds=(
        FileKind(r"(?:annotations/)?captions_(?P<split>train|val)2014\.json", read_coco),
        FileKind(r"(?:.*/)?dataset_coco\.json", read_karpathy, also_splits=("train", "val")),
        FileKind(r"stair_captions_v1\.2_(?P<split>train)\.json", read_coco, languages=("ja",)),
        # of Karpathy's splits the images in his file
        FileKind(r"stair_captions_v1\.2_(?P<split>val)\.json", read_coco, languages=("ja",), also_splits=("test",)),
        FileKind(r"(?:.*/)?yjcaptions26k_clean\.json", read_coco, split="train", languages=("ja",)),
        FileKind(r"(?:mscoco-it/)?captions_ita_(?P<split>\w+)\.json(?:\.gz)?", read_coco, languages=("it",)),
        FileKind(r"(?:data/)?coco-cn_(?P<split>ext)\.icap2020\.txt", read_flickr30k, languages=("zh",)),
        FileKind(
            r"(?:.*/)?imageid\.human-written-caption\.txt",
            read_flickr30k,
            split="all",
            languages=("zh",),
            also_splits=("train", "val", "test"),
        ),
        FileKind(rf"{_TAG}\.(?P<split>train|valid|val|1k_test|test)\.json", read_flickr30k),
    ),
    splits=(
        Split("train"),
        Split("val"),
        Split("test", languages=("en", "ja", "zh")),
        *(Split(name, languages=("ja", "zh"), is_needed=False) for name in ("train", "val")),
        Split("ext", languages=("zh",), rows=4712, is_needed=False),
    ),
    source=(
        "https://cocodataset.org/#download (en), https://github.com/STAIR-Lab-CIT/STAIR-captions (ja), "
        "https://github.com/li-xirong/coco-cn (zh, a form), https://github.com/crux82/mscoco-it (it)"
    ),
    companions=r"(?:.*/)?coco-cn_(?:train|val|test)\.txt",
    images=_COCO_IMAGES,
    split_names={"valid": "val", "1k_test": "test"},
)

XTD10: Final = DataSet(
    name="XTD10",
    folders=("Cross-lingual-Test-Dataset-XTD10",),
    kinds=(FileKind(rf"(?:XTD10|MIC|STAIR)/test_1kcaptions_{_TAG}\.txt", read_aligned),),
    splits=(Split("test", languages=("en", "de", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh"), rows=1000),),
    source="https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10",
    companions=r"XTD10/test_image_names\.txt",
    images=f"{_COCO_IMAGES} (800 of its images are COCO's training images)",
)
_XM3600_TAGS: Final = tuple({"quz": "qu"}.get(key, key) for key in XM3600_LANGUAGES)
XM3600: Final = DataSet(
    name="XM3600",
    folders=("crossmodal-3600", "xm3600"),
    kinds=(FileKind(r"(?:.*/)?captions\.jsonl", read_xm3600, languages=XM3600_LANGUAGES),),
    splits=(Split("test", languages=_XM3600_TAGS, rows=3600),),
    source="https://google.github.io/crossmodal-3600/",
    images="its images, from the same page",
)
CVQA: Final = DataSet(
    name="CVQA",
    folders=("cvqa",),
    kinds=(FileKind(r"(?:data/)?test-\d+-of-\d+\.parquet", read_cvqa, languages=(EVERY,)),),
    splits=(Split("test", languages=(EVERY,)),),
    source="https://huggingface.co/datasets/afaji/cvqa",
    images="in the file itself: python -m finetune data unpack cvqa FOLDER",
)
VQA_V2: Final = DataSet(
    name="VQA v2",
    folders=("vqa", "VQA", "vqa2", "vqav2"),
    kinds=(
        FileKind(r"v2_OpenEnded_mscoco_(?P<split>train2014|val2014|test2015|test-dev2015)_questions\.json", read_vqa),
        FileKind(r"(?:.*/)?vqa_(?P<split>train|val|test)\.json", read_vqa),
    ),
    splits=(Split("train"), Split("val")),
    source="https://visualqa.org/download.html; a list of the answers that are chosen from: X-VLM's answer_list.json",
    vocabulary=r"(?:.*/)?answer_list\.json",
    vocabulary_name="answer_list.json",
    companions=r"v2_mscoco_[a-z]+2014_annotations\.json",
    images=_COCO_IMAGES,
    split_names={"train2014": "train", "val2014": "val", "test2015": "test", "test-dev2015": "test-dev"},
)
REFCOCO: Final = DataSet(
    name="RefCOCO",
    folders=("refcoco", "refcoco+", "refcocog"),
    kinds=(FileKind(r"(?:.*/)?(?:finetune_)?refcoco[+g]?_(?P<split>train|val|test|testA|testB)\.json", read_refcoco),),
    splits=(
        Split("train"),
        Split("val"),
        *(Split(name, is_needed=False) for name in ("testA", "testB", "test")),
    ),
    source="https://github.com/lichengunc/refer",
    images=_COCO_IMAGES,
)

TASKS: Final[Mapping[str, tuple[DataSet, ...]]] = {
    "xvnli": (XVNLI,),
    "xgqa": (GQA, XGQA),
    "marvl": (NLVR2, MARVL),
    "nlvr2": (NLVR2,),
    "xflickrco": (FLICKR30K, XFLICKRCO),
    "wit": (WIT,),
    "multi30k": (MULTI30K,),
    "mscoco": (COCO,),
    "xtd10": (FLICKR30K, XTD10),  # not on COCO, of whose training images it has 800
    "xm3600": (FLICKR30K, XM3600),
    "cvqa": (GQA, CVQA),
    "vqa": (VQA_V2,),
    "refcoco": (REFCOCO,),
}
"""Task → what it is trained and tested on."""
DATA_SETS: Final = tuple({data_set.name: data_set for sets in TASKS.values() for data_set in sets}.values())
"""Each once."""
