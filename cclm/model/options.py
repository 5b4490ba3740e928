"""The shape of a CCLM network as typed options: the `model:` block of a recipe. The standard library alone."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

PathText = Annotated[str, "a path"]
"""As in `cclm.types`, which an exported folder does not carry."""
MAY_BE_ZERO = frozenset({"num_layers", "num_classes", "pad_token_id", "position_offset"})
_hints = cache(get_type_hints)
OptionsType = TypeVar("OptionsType", bound="LayerOptions")


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """A stack of transformer layers; what the vision, text and fusion encoders have in common."""

    num_layers: int = 2
    """Transformer layers in the stack; 0 is allowed."""
    num_heads: int = 4
    """Attention heads; must divide the width."""
    feedforward_width: int = 256
    """Hidden width of the feed-forward sub-layer."""
    norm_position: Literal["pre", "post"] = "pre"
    """"pre": norm before each sub-layer and one at the end; "post": norm after each residual sum, as in BERT."""
    norm_eps: float = 1e-5
    """Epsilon of every LayerNorm in the stack."""
    dropout: float = 0.0
    """Probability to drop a value of a sub-layer's output (and of the embeddings)."""
    attention_dropout: float = 0.0
    """Probability to drop an attention weight."""
    initializer_range: float | None = None
    """Standard deviation of the linear weights at the start (biases 0); null: PyTorch's own uniform rule."""

    def __post_init__(self) -> None:
        """Refuse a wrong word or number at once: JSON carries no types."""
        _check_fields(self)


@dataclass(frozen=True, kw_only=True)
class VisionOptions(LayerOptions):
    """The image encoder."""

    architecture: Literal["conv_vit", "swin", "beit", "hf"] = "conv_vit"
    """"conv_vit": a convolutional stem, then a transformer over its grid; "swin": Swin (CCLM-3M/4M); "beit": BEiT-v2
    (CCLM-X2VLM); "hf": any image model of the transformers library, described by `tower`."""
    source: PathText | None = None
    """"hf": name or folder of the Hugging Face model that `tower` is read from when a run starts. It says nothing about
    weights: those come from `start.sources`."""
    tower: dict[str, Any] | None = None
    """"hf": the image model's own configuration, as its config.json has it. An exported model carries it."""
    summary: Literal["mean", "class"] = "mean"
    """"hf": what stands for the whole image: the mean of its patches, or the model's own class token."""
    num_layers: int = 1
    """Transformer layers after the stem; Swin counts its blocks in `stage_layers`."""
    image_size: int = 32
    """Side of the square input in pixels."""
    stem_channels: tuple[int, ...] = (32, 64, 128)
    """Channels of the stem's stages; each halves the side, so the grid has (image_size / 2^stages)² tokens."""
    stem_norm: Literal["layer", "group", "affine"] = "layer"
    """Norm in the stem. Never over the batch, because ranks would differ. "layer": over the channels of each pixel;
    "group": GroupNorm; "affine": none, only scale and shift per channel, set once from data by
    `CCLMModel.calibrate_stem` before training (needed: without it the signal fades)."""
    stem_groups: int = 8
    """Groups of the stem's GroupNorm."""
    stem_stage: Literal["plain", "skip", "residual"] = "plain"
    """What a stage does around its two convolutions. "plain": nothing; "skip": add the first's output to the second's;
    "residual": a ResNet block with a convolution as shortcut."""
    patch_size: int = 16
    """Swin and BEiT: side in pixels of the patches that become the first tokens (Swin: 4, BEiT: 16)."""
    drop_path: float = 0.0
    """Swin and BEiT: probability to drop the last block's sub-layers for an image; earlier blocks rise to it from 0."""
    keep_patches: float = 1.0
    """Share of an image's patches that a training step computes, drawn anew for each image and step (FLIP): 0.5 halves
    the work of the tower. Evaluation sees all. Not for Swin, whose windows need whole grids."""
    window: int = 7
    """Swin: side of an attention window in tokens."""
    stage_layers: tuple[int, ...] = (2, 2, 18, 2)
    """Swin: blocks per stage; each further stage halves the grid and doubles the channels, up to the width."""
    stage_heads: tuple[int, ...] = (4, 8, 16, 32)
    """Swin: attention heads per stage. (Its feed-forward width is `feedforward_width` in the last stage and stands in
    the same proportion to the channels in the others.)"""
    layer_scale: float = 0.1
    """BEiT: what the learned scales of its sub-layers start from."""

    @property
    def grid_side(self) -> int | None:
        """Tokens along a side of the last grid; None for an "hf" tower whose configuration does not tell."""
        return self.image_size // self.stride if self.stride else None

    @property
    def stride(self) -> int:
        """Pixels of the image side per token of the last grid's side; 0 if that is unknown."""
        if self.architecture == "hf":
            return tower_stride(self.tower or {})
        if self.architecture == "conv_vit":
            return int(2 ** len(self.stem_channels))
        return int(self.patch_size * (2 ** (len(self.stage_layers) - 1) if self.architecture == "swin" else 1))


DROPS_PATCHES = (
    "clip_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "siglip_vision_model",
    "siglip2_vision_model",
    "vit",
)
"""`model_type`s of the transformers library whose patches get their place before the first layer, and nowhere else."""
STRIDES = {"dinov3_convnext": 32, "resnet": 32, "regnet": 32}
"""`model_type` → stride of the image models whose configuration has no patch size."""


def tower_stride(tower: dict[str, Any]) -> int:
    """Pixels per token of an image model of the transformers library, from its configuration; 0 if it does not tell."""
    patch = tower.get("patch_size")
    patch = patch[0] if isinstance(patch, list | tuple) and patch else patch
    if not isinstance(patch, int):
        return STRIDES.get(str(tower.get("model_type")), 0)
    stages = tower.get("depths")  # only hierarchical models have it: each further stage halves the grid
    return patch * 2 ** (len(stages) - 1) if stages else patch


@dataclass(frozen=True, kw_only=True)
class TextOptions(LayerOptions):
    """The text encoder."""

    architecture: Literal["own", "hf"] = "own"
    """"own": this project's layers, which hold the weights of XLM-R, BERT and their kin too; "hf": any encoder of the
    transformers library whose tokens see each other in both directions (ModernBERT, EuroBERT, DeBERTa-v2 …), described
    by `tower`; of the other fields only those about words, `max_positions` and `pooling` then count."""
    source: PathText | None = None
    """Name or folder of the Hugging Face model that the sizes ("own": not the number of layers), or `tower`, are read
    from when a run starts. It says nothing about weights: those come from `start.sources`."""
    tower: dict[str, Any] | None = None
    """"hf": the text model's own configuration, as its config.json has it; beside a `source` the entries that are to
    differ from it (`{num_hidden_layers: 6}`: its first 6 layers). An exported model carries it."""

    vocab_size: int = 14000
    """Rows of the embedding table, as many as the tokenizer has ids."""
    pad_token_id: int = 1
    """Id that fills the padding; its embedding stays zero."""
    max_positions: int = 64
    """Rows of the position table."""
    position_offset: int = 0
    """Row of the first token's position: 0 as in CCLM-3M/4M, pad id + 1 as in XLM-R."""
    position_rule: Literal["column", "ids"] = "column"
    """How tokens are counted. "column": where they stand; "ids": as RoBERTa does, each id that is not the pad id, from
    pad id + 1 (`position_offset` is not used); a pad id takes the row of its number, which is never trained. The two
    differ when random replacement puts a pad id into a text."""
    token_type: bool = False
    """Add one learned vector to every token: BERT's only token type, which published weights carry."""
    embedding_norm: bool = False
    """Normalise the sum of word and position embeddings; a "post" stack always does, as in BERT."""
    embedding_range: float = 0.02
    """Standard deviation of the word and position embeddings at the start."""
    pooling: Literal["cls", "mean", "mean_first"] = "mean"
    """What a text's feature is read from: "cls" the first state; "mean" the mean of its states; "mean_first" the same,
    and that mean also takes the place of the first state, so that the fusion encoder sees it too."""


@dataclass(frozen=True, kw_only=True)
class FusionOptions(LayerOptions):
    """The fusion encoder: text states look at the memory (image tokens or the other text's states)."""

    pooling: Literal["cls", "mean"] = "cls"
    """What the matching head reads: the first fused state, or their mean."""
    num_memories: int = 1
    """Memories that a text reads, each layer once for each: 2 for two images and a sentence about both (NLVR2, MaRVL).
    Training here needs 1; such models are fine-tuned."""
    null_memory: bool = False
    """Give each cross-attention one learned key with a zero value, so that a head may look at nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Everything that decides the network's parameters; the `model:` block of a recipe."""

    width: int = 128
    """Width of all three encoders (the fusion memory may come from either view, so they must agree)."""
    projection_width: int = 128
    """Width of the contrastive features."""
    shared_projection: bool = False
    """Project images with the texts' projection too (published as `use_one_cl_proj_only`, off)."""
    matching_width: int = 256
    """Hidden width of the matching head, and of the box head."""
    box_head: bool = False
    """Predict the box that a text describes (CCLM-4M and the X2VLM models; the 3M files carry it untrained)."""
    pretraining_heads: bool = True
    """Projections, temperature and matching head; models fine-tuned for classes or answers have none of them."""
    num_classes: int = 0
    """Classes of a fine-tuned classifier of the fused first state (XVNLI 3, NLVR2 2); 0: no such head."""
    class_images: int = 1
    """Images whose fused first states the classifier reads side by side, each from a pass of its own (X2VLM's NLVR2: 2;
    3M/4M read both in one pass, see `fusion.num_memories`)."""
    answer_decoder: bool = False
    """A decoder that writes answers to questions (VQA, GQA), with layers like those of the fusion encoder."""
    masked_lm_head: bool = True
    """Predict masked tokens; models fine-tuned for retrieval have no such head (training here needs one)."""
    masked_lm_norm_eps: float | None = None
    """Epsilon of the masked-LM head's norm; null: that of the fusion encoder (they differ in the X2VLM models)."""
    initial_temperature: float = 0.07
    """Contrastive temperature at the start; similarities are divided by it. (HF keeps the plain word `temperature` for
    text generation and refuses to save it.)"""
    temperature_form: Literal["clamped", "log"] = "clamped"
    """What is learned. "clamped": the temperature itself, as published; "log": the logarithm of 1 / temperature, as in
    CLIP. The bounds hold for both."""
    temperature_min: float = 0.001
    """Lower bound of the temperature."""
    temperature_max: float = 0.5
    """Upper bound of the temperature."""
    similarity_bias: float | None = None
    """What the learned bias of similarities starts from, for `objectives.contrastive: sigmoid` (SigLIP: -10, with an
    initial temperature of 0.1); null: there is none."""
    tie_decoder: bool = True
    """Use the word embeddings as the weight of the masked-LM decoder."""
    token_layout: Literal["auto", "grouped", "packed", "padded"] = "auto"
    """How texts lie in memory inside the encoders: "grouped" by length and "packed" spend nothing on padding, "padded"
    is their slow twin; the values are the same. "auto": grouped on a CPU, packed on a GPU."""
    vision: VisionOptions = field(default_factory=VisionOptions)
    """Image encoder."""
    text: TextOptions = field(default_factory=TextOptions)
    """Text encoder."""
    fusion: FusionOptions = field(default_factory=FusionOptions)
    """Fusion encoder."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        _check_fields(self)
        # An own encoder has the width of its source, which is read when a run starts.
        is_known = self.text.source is None or self.text.architecture == "hf"
        for name, options in (("vision", self.vision), ("text", self.text), ("fusion", self.fusion)):
            is_ours = getattr(options, "architecture", "") != "hf"
            if is_known and is_ours and self.width % options.num_heads:
                raise ValueError(
                    f"{name}.num_heads: expected a divisor of width {self.width}, got {options.num_heads}. "
                    "Change one of the two."
                )
        if not 0 < self.temperature_min <= self.initial_temperature <= self.temperature_max:
            raise ValueError(
                f"initial_temperature: expected 0 < temperature_min <= initial_temperature <= temperature_max, got "
                f"{self.temperature_min}, {self.initial_temperature}, {self.temperature_max}. Widen the bounds."
            )
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if tower.architecture == "hf" and "model_type" not in (tower.tower or {}) and tower.source is None:
                raise ValueError(
                    f'{name}: expected a tower for architecture "hf", got none. '
                    f"Name a model in {name}.source, or give {name}.tower."
                )
            if tower.architecture != "hf" and tower.tower is not None:
                raise ValueError(
                    f'{name}.tower: expected none for architecture "{tower.architecture}", got one. '
                    f'Leave it out, or set {name}.architecture to "hf".'
                )
        _check_vision(self.width if is_known else None, self.vision)

    @property
    def masked_lm_eps(self) -> float:
        """Epsilon of the masked-LM head's norm."""
        return self.fusion.norm_eps if self.masked_lm_norm_eps is None else self.masked_lm_norm_eps

    @property
    def tied_weights(self) -> dict[str, str]:
        """Which parameters are one tensor: second name → the name under which it is stored."""
        tied = {}
        if self.masked_lm_head and self.tie_decoder:
            tied["masked_lm_decoder.weight"] = "text_encoder.embeddings.words.weight"
        if self.answer_decoder and self.tie_decoder:
            tied["answer_decoder.masked_lm_decoder.weight"] = "answer_decoder.embeddings.words.weight"
        number = self.fusion.num_memories
        for layer in range(self.fusion.num_layers * number):
            if first := layer % number:
                stack, part = "fusion_encoder.stack.layers", "cross_attention.key_value"
                for kind in ("weight", "bias"):
                    tied[f"{stack}.{layer}.{part}.{kind}"] = f"{stack}.{layer - first}.{part}.{kind}"
        return tied


def _check_vision(width: int | None, vision: VisionOptions) -> None:
    if vision.stride and vision.image_size % vision.stride:
        reason = {
            "conv_vit": f"each of the {len(vision.stem_channels)} stem stages halves the side",
            "swin": f"patches of {vision.patch_size}, {len(vision.stage_layers)} stages",
            "beit": "the patch size",
            "hf": "the stride of the tower",
        }[vision.architecture]
        raise ValueError(
            f"vision.image_size: expected a multiple of {vision.stride} ({reason}), got {vision.image_size}. "
            "Change one of the two."
        )
    _check_keep_patches(vision)
    if vision.architecture != "swin" or width is None:
        return
    if len(vision.stage_heads) != len(vision.stage_layers):
        raise ValueError(
            f"vision.stage_heads: expected {len(vision.stage_layers)} numbers, one per stage, got "
            f"{len(vision.stage_heads)}. Give each stage its heads."
        )
    for stage, heads in enumerate(vision.stage_heads):
        halvings = len(vision.stage_layers) - 1 - stage
        channels, side = width / 2**halvings, vision.image_size // vision.stride * 2**halvings
        if channels % heads or (side > vision.window and side % vision.window):
            raise ValueError(
                f"vision: expected stage {stage} to cut its {channels:g} channels into stage_heads and its grid of "
                f"side {side} into windows of side {vision.window}, got {heads} heads. Change the sizes of the tower."
            )


def _check_keep_patches(vision: VisionOptions) -> None:
    if not 0 < vision.keep_patches <= 1:
        raise ValueError(
            f"vision.keep_patches: expected a share above 0 and of at most 1, got {vision.keep_patches}. "
            "Give a share, 0.5 say."
        )
    if vision.keep_patches == 1 or (vision.architecture == "hf" and vision.tower is None):
        return  # what a source's tower is turns out when it is read
    is_ours, tower = vision.architecture != "hf", vision.tower or {}
    kind = vision.architecture if is_ours else str(tower.get("model_type"))
    if kind not in (("conv_vit", "beit") if is_ours else DROPS_PATCHES):
        raise ValueError(
            f"vision.keep_patches: expected 1 for {kind}, which computes with the whole grid of patches, got "
            f"{vision.keep_patches}. Remove it, or choose conv_vit, beit, or a transformers tower of one of these "
            f"types: {', '.join(DROPS_PATCHES)}."
        )


def options_from_dict(values: dict[str, Any]) -> ModelOptions:
    """Build `ModelOptions` from the JSON form; missing fields take their defaults (ValueError: a field of a block that
    does not exist).
    """
    kinds = {"vision": VisionOptions, "text": TextOptions, "fusion": FusionOptions}
    blocks: dict[str, Any] = {name: _block(name, kind, values.get(name)) for name, kind in kinds.items()}
    return ModelOptions(**{**values, **blocks})


def _block(name: str, kind: type[OptionsType], value: dict[str, Any] | OptionsType | None) -> OptionsType:
    if isinstance(value, kind):
        return value
    given = dict(value) if isinstance(value, dict) else {}
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(given) - known):
        raise ValueError(
            f"{name}: expected only {', '.join(sorted(known))}, got {', '.join(unknown)}. Remove or rename them."
        )
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in given.items()}
    return kind(**values)


def _check_fields(options: Any) -> None:
    """Closed sets of words hold one of them, no size is below 1, and what is dropped is a share."""
    for name, hint in _hints(options.__class__).items():
        choices, value, least = get_args(hint), getattr(options, name), 0 if name in MAY_BE_ZERO else 1
        if get_origin(hint) is Literal and value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}. Correct the config.")
        if hint in (int, tuple[int, ...]) and min(value if hint is not int else (value,), default=least) < least:
            raise ValueError(f"{name}: expected whole numbers of at least {least}, got {value}. Correct the config.")
        if "drop" in name and not 0 <= value < 1:
            raise ValueError(f"{name}: expected a number of at least 0 and below 1, got {value}. Correct the config.")
