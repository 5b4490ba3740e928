"""A two-view training module in miniature, with the real one's structure: vision, text and fusion encoders, a masked-LM
decoder tied to the word embedding, one temperature of shape (1,). Losses are global means. No dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.data.batch import Batch, MaskedTokens, PixelScale, Tokens
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Losses
from cclm.views.image_text.view import ImageTextBatch
from cclm.views.text_pair.view import TextPairBatch
from tests.gathering import gather_of

WIDTH = 32
VOCAB = 50
MAX_TOKENS = 8
GLOBAL_SAMPLES = 8


class TransformerLayer(nn.Module):
    """Pre-norm attention (to itself or to a memory) and a feed-forward layer."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x_BLD: Tensor, memory_BND: Tensor | None = None) -> Tensor:
        normed = self.norm_1(x_BLD)
        memory = normed if memory_BND is None else memory_BND
        heads = (self.query(normed), self.key(memory), self.value(memory))
        query, key, value = (item.unflatten(-1, (2, -1)).transpose(1, 2) for item in heads)
        x_BLD = x_BLD + self.out(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x_BLD + self.down(functional.gelu(self.up(self.norm_2(x_BLD))))


class Stack(nn.Module):
    def __init__(self, depth: int, width: int, ffn: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerLayer(width, ffn) for _ in range(depth))

    def forward(self, x_BLD: Tensor, memory_BND: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x_BLD = block(x_BLD, memory_BND)
        return x_BLD


class Decoder(nn.Module):
    """Logits with the word embedding's weight; its own bias."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))

    def forward(self, hidden_TD: Tensor) -> Tensor:
        return functional.linear(hidden_TD, self.weight, self.bias)


class Temperature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((1,), 0.1))

    def forward(self) -> Tensor:
        return self.value.clamp(0.01, 1.0)


class ToyModel(nn.Module):
    def __init__(self, width: int = WIDTH, depth: int = 1, ffn: int = 2 * WIDTH, vocab: int = VOCAB) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.vision = Stack(depth, width, ffn)
        self.words = nn.Embedding(vocab, width)
        self.text = Stack(depth, width, ffn)
        self.fusion = Stack(depth, width, ffn)
        self.image_projection, self.text_projection = nn.Linear(width, width), nn.Linear(width, width)
        self.matching = nn.Linear(width, 2)
        self.decoder = Decoder(self.words.weight)
        self.temperature = Temperature()


class ToyTraining(nn.Module):
    """Maps a Batch to Losses; each module runs at most once a step."""

    def __init__(self, collectives: Collectives, **sizes: int) -> None:
        super().__init__()
        self.model = ToyModel(**sizes)
        self.collectives = collectives

    def forward(self, batch: Batch) -> Losses:
        image, pair = batch.views.get("image_text"), batch.views.get("text_pair")
        ids = [item.texts[0].ids_BL for item in (image, pair) if item is not None]
        ids += [item.masked.tokens.ids_BL for item in (image, pair) if item is not None]
        texts = self.model.text(self.model.words(torch.cat(ids))).split([len(rows) for rows in ids])
        temperature = self.model.temperature()
        views, masked = [], list(texts[len(texts) // 2 :])
        if isinstance(image, ImageTextBatch):
            memory = self.model.vision(self.model.patches(image.images_BCHW).flatten(2).transpose(1, 2))
            views.append(("image_text", self.model.image_projection(memory.mean(1)), memory, texts[0], image))
        if isinstance(pair, TextPairBatch):
            text = texts[len(texts) // 2 - 1]
            memory = text[pair.first_P]
            views.append(("text_pair", None, memory, text[pair.second_P], pair))
        features = self.model.text_projection(
            torch.cat([view[3].mean(1) for view in views] + [view[2].mean(1) for view in views if view[1] is None])
        )
        rows = features.split([len(view[3]) for view in views] + [len(view[2]) for view in views if view[1] is None])
        metrics: dict[str, Tensor] = {"temperature": temperature.detach().squeeze()}
        total = torch.zeros(())
        for index, (name, first, _, _, _) in enumerate(views):
            loss = self._contrast(rows[-1] if first is None else first, rows[index], temperature)
            metrics[f"{name}/contrastive"] = loss.detach()
            total = total + loss
        return Losses(total=total + self._fuse(views, masked, metrics), metrics=metrics)

    def _contrast(self, first_BE: Tensor, second_BE: Tensor, temperature: Tensor) -> Tensor:
        first_BE, second_BE = functional.normalize(first_BE, dim=-1), functional.normalize(second_BE, dim=-1)
        gather, rank = gather_of(self.collectives), self.collectives.rank
        target = torch.arange(len(first_BE)) + rank * len(first_BE)
        return 0.5 * (
            functional.cross_entropy(first_BE @ gather(second_BE).T / temperature, target)
            + functional.cross_entropy(second_BE @ gather(first_BE).T / temperature, target)
        )

    def _fuse(self, views: list, masked: list[Tensor], metrics: dict[str, Tensor]) -> Tensor:
        """Positives, negatives (neighbours inside pairs of samples) and masked texts in one call."""
        width = max(view[2].shape[1] for view in views)
        queries, memories = [], []
        for (_, _, memory, text, _), masked_text in zip(views, masked, strict=True):
            memory = functional.pad(memory, (0, 0, 0, width - memory.shape[1]))
            queries += [text, text, masked_text]
            memories += [memory, memory.unflatten(0, (-1, 2)).flip(1).flatten(0, 1), memory]
        fused = self.model.fusion(torch.cat(queries), torch.cat(memories)).split([len(item) for item in queries])
        matching = torch.cat([fused[index + offset][:, 0] for index in range(0, len(fused), 3) for offset in (0, 1)])
        label = torch.cat(
            [torch.full((len(fused[i]),), (i + 1) % 3, dtype=torch.long) for i in range(len(fused)) if i % 3 < 2]
        )
        slots = [fused[3 * i + 2].flatten(0, 1)[view[4].masked.slot_T] for i, view in enumerate(views)]
        tokens = torch.cat([view[4].masked.label_T for view in views])
        match_loss = functional.cross_entropy(self.model.matching(matching), label % 2)
        loss_sum = functional.cross_entropy(self.model.decoder(torch.cat(slots)), tokens, reduction="sum")
        global_count = self.collectives.sum(torch.tensor(float(len(tokens))))
        mlm_loss = loss_sum * self.collectives.world_size / global_count
        metrics |= {"matching": match_loss.detach(), "masked_lm": mlm_loss.detach()}
        return match_loss + mlm_loss


def make_toy(collectives: Collectives) -> nn.Module:
    """The module factory of the tests."""
    return ToyTraining(collectives)


def make_toy_with_dropout(collectives: Collectives) -> nn.Module:
    module = ToyTraining(collectives)
    module.model.text_projection = nn.Sequential(nn.Dropout(0.3), module.model.text_projection)
    return module


def joint_batch(step: int, rank: int, world_size: int) -> Batch:
    """Both views in every step."""
    return _batch(step, rank, world_size, "both")


def mixed_batch(step: int, rank: int, world_size: int) -> Batch:
    """Views by step: joint, image only, text only, text only, image only, joint, …"""
    return _batch(step, rank, world_size, ("both", "image", "text", "text", "image")[step % 5])


def _batch(step: int, rank: int, world_size: int, views: str) -> Batch:
    generator = torch.Generator().manual_seed(1000 + step)
    both = {"image": _image_text(generator, rank, world_size), "text": _text_pair(generator, rank, world_size)}
    names = {"image": "image_text", "text": "text_pair"}
    return Batch(step=step, views={names[kind]: view for kind, view in both.items() if views in ("both", kind)})


def _share(rank: int, world_size: int) -> slice:
    size = GLOBAL_SAMPLES // world_size
    return slice(rank * size, (rank + 1) * size)


def _image_text(generator: torch.Generator, rank: int, world_size: int) -> ImageTextBatch:
    rows = _share(rank, world_size)
    images = torch.randn(GLOBAL_SAMPLES, 3, 8, 8, generator=generator)[rows]
    ids = torch.randint(0, VOCAB, (GLOBAL_SAMPLES, MAX_TOKENS), generator=generator)[rows]
    samples = torch.arange(GLOBAL_SAMPLES)[rows]
    return ImageTextBatch(
        images_BCHW=images,
        pixel_scale=PixelScale(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        text=_tokens(ids),
        identity_R=samples,
        row_R=samples,
        matching_row_F=torch.arange(len(ids)),
        counted_F=torch.ones(len(ids)),
        noise_second_FG=torch.zeros(len(ids), 2),
        noise_first_FG=torch.zeros(len(ids), 2),
        masked=_masked(ids, samples),
        ledger_S=samples,
    )


def _text_pair(generator: torch.Generator, rank: int, world_size: int) -> TextPairBatch:
    rows = _share(rank, world_size)
    first, second = torch.randint(0, VOCAB, (2, GLOBAL_SAMPLES, MAX_TOKENS), generator=generator)
    ids = torch.cat([first[rows], second[rows]])
    samples, local = torch.arange(GLOBAL_SAMPLES)[rows], torch.arange(len(ids) // 2)
    return TextPairBatch(
        text=_tokens(ids),
        first_P=local,
        second_P=local + len(local),
        identity_P=samples,
        row_R=samples,
        matching_row_F=local,
        counted_F=torch.ones(len(local)),
        memory_S=local,
        query_S=local + len(local),
        identity_S=samples,
        noise_second_FG=torch.zeros(len(local), 2),
        noise_first_FG=torch.zeros(len(local), 2),
        masked=_masked(ids[: len(local)], samples),
        ledger_S=samples,
    )


def _tokens(ids: Tensor) -> Tokens:
    return Tokens(ids_BL=ids, mask_BL=torch.ones_like(ids, dtype=torch.bool))


def _masked(ids: Tensor, samples: Tensor) -> MaskedTokens:
    """Sample s has s + 1 masked slots (at most MAX_TOKENS), so that ranks hold different numbers of them."""
    is_masked = torch.arange(MAX_TOKENS) < (samples[:, None] + 1)
    return MaskedTokens(
        tokens=_tokens(ids.masked_fill(is_masked, 1)),
        slot_T=is_masked.flatten().nonzero().flatten(),
        label_T=ids[is_masked],
    )
