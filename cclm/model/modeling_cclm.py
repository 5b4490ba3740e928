"""The CCLM network: three encoders, their heads, and the Hugging Face surface.

    images ── encode_images ── (B, 1 + P, D) ─┬─ project_images ── feature (B, E) ── contrastive
                                              └─ memory ┐
    texts ─── encode_texts ─── (B, L, D) ─┬─────── fuse ┴── (B, L, D) ─┬─ match_logits ── matching
                                          ├─ project_texts             └─ masked_lm_states ── masked LM
                                          └─ memory (the other text of a sentence pair)

The methods of `CCLMModel` only call submodules, each of which uses its own parameters: ZeRO-3 gathers per module call.
A training step calls each of them once, with everything that must pass through it concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .answer_decoder import AnswerDecoder
from .beit import BeitBlock, BeitEncoder, BiasVector
from .configuration_cclm import CCLMConfig
from .encoders import FusionEncoder, TextEmbeddings, TextEncoder, pool_states
from .heads import (
    BOXES,
    TEMPERATURES,
    BoxHead,
    MaskedLMDecoder,
    MaskedLMTransform,
    MatchingHead,
    ProjectionHead,
    ResultType,
    SimilarityBias,
    Temperature,
    present,
)
from .hf_text import HFTextEncoder
from .hf_vision import HFVisionEncoder
from .inference import InferenceMethods
from .kernels import use_kernels  # noqa: F401  # the loader of transformers 5.0 copies what this file names, no more
from .layers import CrossAttention
from .options import LayerOptions, ModelOptions, TextOptions, VisionOptions
from .packing import masked_mean
from .reading import plan_reading  # noqa: F401  # as above
from .shapes import Bool, Float, Int
from .swin import RelativePositionBias, SwinEncoder
from .vision import ChannelAffine, ConvVisionEncoder, kept_patches

VISION_ENCODERS: dict[str, Callable[[int, VisionOptions], nn.Module]] = {
    "conv_vit": ConvVisionEncoder,
    "swin": SwinEncoder,
    "beit": BeitEncoder,
    "hf": HFVisionEncoder,
}
"""`vision.architecture` → a module from (B, 3, H, W) to (B, 1 + P, D), whose token 0 stands for the whole image."""
TEXT_ENCODERS: dict[str, Callable[[int, TextOptions, str], nn.Module]] = {"own": TextEncoder, "hf": HFTextEncoder}
"""`text.architecture` → a module from ids and mask (B, L) to states (B, L, D), whose words are `embeddings.words`."""


@dataclass
class CCLMOutput(ModelOutput):  # type: ignore[misc]  # transformers is seen untyped
    """What `CCLMModel.forward` returns; a field is None if its input was not given."""

    image_embeds: Tensor | None = None
    """(B, E) unit vectors of the images."""
    text_embeds: Tensor | None = None
    """(C, E) unit vectors of the texts."""
    logits_per_image: Tensor | None = None
    """(B, C) similarities divided by the temperature."""
    logits_per_text: Tensor | None = None
    """(C, B), the transpose."""
    pooler_output: Tensor | None = None
    """(B, E) `image_embeds` again, where images came alone: what image-feature-extraction pools."""
    logits: Tensor | None = None
    """(B, classes) of a classifier."""


class CCLMModel(InferenceMethods, PreTrainedModel):  # type: ignore[misc]  # transformers is seen untyped
    """Cross-view language model: the same text encoder, fusion encoder and heads for image-text and text-text."""

    config_class = CCLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: CCLMConfig) -> None:
        super().__init__(config)
        options = config.options()
        width = options.width
        self.pooling = (options.text.pooling, options.fusion.pooling)
        self.grid_side, self.keep_patches = options.vision.grid_side, options.vision.keep_patches
        self.vision_encoder = VISION_ENCODERS[options.vision.architecture](width, options.vision)
        self.text_encoder = TEXT_ENCODERS[options.text.architecture](width, options.text, options.token_layout)
        words_width = self.get_input_embeddings().embedding_dim
        if options.masked_lm_head and options.tie_decoder and words_width != width:
            raise ValueError(
                f"tie_decoder: expected words of width {width} (width), got {words_width} from text.tower. "
                f"Set tie_decoder to false, or width to {words_width}."
            )
        self.fusion_encoder = FusionEncoder(width, options.fusion, options.token_layout)
        has_heads, has_words = options.pretraining_heads, options.masked_lm_head
        own_projection = has_heads and not options.shared_projection
        self.image_projection = ProjectionHead(width, options.projection_width) if own_projection else None
        self.text_projection = ProjectionHead(width, options.projection_width) if has_heads else None
        self.matching_head = MatchingHead(width, options.matching_width) if has_heads else None
        num_images = options.class_images
        self.class_head = None
        if options.num_classes:
            self.class_head = MatchingHead(num_images * width, num_images * options.matching_width, options.num_classes)
        self.answer_decoder = AnswerDecoder(options) if options.answer_decoder else None
        self.box_head = BoxHead(width, options.matching_width) if options.box_head else None
        self.masked_lm_transform = MaskedLMTransform(width, options.masked_lm_eps) if has_words else None
        self.masked_lm_decoder = MaskedLMDecoder(width, options.text.vocab_size) if has_words else None
        self._tied_weights_keys = options.tied_weights
        bounds = (options.initial_temperature, options.temperature_min, options.temperature_max)
        temperature = TEMPERATURES[options.temperature_form](*bounds) if has_heads else None
        self.temperature: Temperature = temperature  # type: ignore[assignment]  # who trains has one
        start = options.similarity_bias
        self.similarity_bias = SimilarityBias(start) if has_heads and start is not None else None
        self._initial_std = self._collect_initial_std(options)
        self.post_init()

    # --- the pieces that a training step is made of ---

    def encode_images(
        self, images_BCHW: Float[Tensor, "b 3 h w"], key_B: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Normalised pixels to 1 + P tokens; index 0 stands for the whole image.

        `key_B`: in training with `vision.keep_patches` below 1, what the draw of each image's patches depends on; P is
        then their number. Without it all patches are computed.
        """
        if self.training and self.keep_patches < 1 and key_B is not None and self.grid_side is not None:
            kept_BK = kept_patches(key_B, self.grid_side**2, self.keep_patches)
            dropped_BND: Tensor = self.vision_encoder(images_BCHW, kept_BK=kept_BK)
            return dropped_BND
        image_BND: Tensor = self.vision_encoder(images_BCHW)
        return image_BND

    def pool_regions(
        self,
        image_BND: Float[Tensor, "b n d"],
        image_of_R: Int[Tensor, " r"],
        region_mask_RN: Bool[Tensor, "r n"],
    ) -> Float[Tensor, "r n d"]:
        """Tokens of R regions of encoded images (CCLM-4M's region branch).

        The patches are those of the whole image, unchanged (they have seen all of it); token 0 becomes the mean of the
        patches inside the region. The region itself goes into `fuse` as the memory mask: `region_mask_RN` is True for
        its patches (at least one), and for token 0.

        Raises:
            ValueError: an image tower whose tokens form no known grid.
        """
        if self.grid_side is None:
            raise ValueError(
                "regions: expected an image tower with a square grid of patches, got one whose configuration tells no "
                "patch size. Train it without regions, or choose another tower."
            )
        patch_RPD = image_BND[image_of_R, 1:]
        return torch.cat([masked_mean(patch_RPD, region_mask_RN[:, 1:])[:, None], patch_RPD], 1)

    def encode_texts(
        self, ids_BL: Int[Tensor, "b l"], mask_BL: Bool[Tensor, "b l"], num_tokens: int | None = None
    ) -> Float[Tensor, "b l d"]:
        """Token states, zero in the padding; every text has at least one real token.

        `num_tokens`: how many are real, for who knows; else a GPU is asked, and waited for.
        """
        text_BLD: Tensor = self.text_encoder(ids_BL, mask_BL, num_tokens=num_tokens)
        return text_BLD

    def fuse(
        self,
        text_BLD: Float[Tensor, "b l d"],
        mask_BL: Bool[Tensor, "b l"],
        memory: Float[Tensor, "m n d"] | Sequence[Float[Tensor, "m _n d"]] | None,
        memory_mask_MN: Bool[Tensor, "m n"] | None = None,
        has_memory_B: Bool[Tensor, " b"] | None = None,
        memory_of_B: Int[Tensor, " b"] | None = None,
        wanted_W: Int[Tensor, " w"] | None = None,
    ) -> Float[Tensor, "*cells d"]:
        """Let each text read its memory (an image's tokens, or the other text's states); None: self-attention only.

        `memory_of_B`: which of M memories each text reads, whose keys and values are then computed once for all their
        readers; None: there are as many as texts, in their order.

        A model for several memories (`fusion.num_memories`) takes a list of them, every token of which is real.
        `has_memory_B`: False for texts that read nothing although others of the call do (TLM beside image-text).

        `wanted_W`: cells b · L + l, real and different, text by text, whose states are returned in their order, (W, D);
        the last layer computes no others. None: all, (B, L, D).
        """
        memories = () if memory is None else (memory,) if isinstance(memory, Tensor) else memory
        fused: Tensor = self.fusion_encoder(
            text_BLD,
            mask_BL,
            *memories,
            memory_mask_MN=memory_mask_MN,
            has_memory_B=has_memory_B,
            memory_of_B=memory_of_B,
            wanted_W=wanted_W,
        )
        return fused

    def project_images(self, image_BND: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Contrastive features of encoded images: unit vectors."""
        head = present(self.text_projection if self.image_projection is None else self.image_projection, "features")
        feature_BE: Tensor = head(image_BND[:, 0])
        return feature_BE

    def project_texts(self, text_BLD: Float[Tensor, "b l d"], mask_BL: Bool[Tensor, "b l"]) -> Float[Tensor, "b e"]:
        """Contrastive features of encoded texts: unit vectors."""
        head = present(self.text_projection, "features")
        feature_BE: Tensor = head(pool_states(text_BLD, mask_BL, self.pooling[0]))
        return feature_BE

    def match_logits(self, fused_BLD: Float[Tensor, "b l d"], mask_BL: Bool[Tensor, "b l"]) -> Float[Tensor, "b 2"]:
        """Do text and memory belong together? Class 1 means yes."""
        head = present(self.matching_head, "matching logits")
        logits_B2: Tensor = head(pool_states(fused_BLD, mask_BL, self.pooling[1]))
        return logits_B2

    def class_logits(
        self, fused: Sequence[Float[Tensor, "b l d"]], mask_BL: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b classes"]:
        """Which class? `fused` holds the fused states of `class_images` passes, one for each image (ValueError: a model
        without classifier).
        """
        head = present(self.class_head, "classes", "num_classes > 0")
        logits_BC: Tensor = head(torch.cat([pool_states(one_BLD, mask_BL, self.pooling[1]) for one_BLD in fused], -1))
        return logits_BC

    def locate_boxes(self, fused_BLD: Float[Tensor, "b l d"], mask_BL: Bool[Tensor, "b l"]) -> Float[Tensor, "b 4"]:
        """Where in its image is what each text describes? Centre x, y, width, height, as shares of the image
        (ValueError: a model without box head).
        """
        head = present(self.box_head, *BOXES)
        box_B4: Tensor = head(pool_states(fused_BLD, mask_BL, self.pooling[1]))
        return box_B4

    def masked_lm_states(self, fused_TD: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        """Fused states at the masked slots, ready for the decoder (ValueError: a model without masked-LM head)."""
        hidden_TD: Tensor = present(self.masked_lm_transform, "masked tokens", "masked_lm_head: true")(fused_TD)
        return hidden_TD

    def decode_with(
        self, hidden_TD: Float[Tensor, "t d"], function: Callable[[Tensor, Tensor, Tensor], ResultType]
    ) -> ResultType:
        """`function(hidden_TD, weight_VD, bias_V)`, called where the decoder's parameters exist."""
        assert self.masked_lm_decoder is not None, "masked_lm_states refuses first"
        result: ResultType = self.masked_lm_decoder(hidden_TD, function)
        return result

    @torch.no_grad()
    def calibrate_stem(self, images_BCHW: Float[Tensor, "b 3 h w"]) -> None:
        """Set the scales and shifts of a stem with `stem_norm: affine` so that these images come out normalised.

        Call it once, before the parameters are handed to an engine, with the same images on every rank (the first
        batch, say). Does nothing to other stems.
        """
        if not isinstance(self.vision_encoder, ConvVisionEncoder):
            return
        affine = [module for module in self.vision_encoder.modules() if isinstance(module, ChannelAffine)]
        for module in affine:
            module.calibrating = True
        self.vision_encoder.stem(images_BCHW)
        for module in affine:
            module.calibrating = False

    # --- the Hugging Face surface ---

    def forward(
        self,
        pixel_values: Float[Tensor, "b 3 h w"] | None = None,
        input_ids: Int[Tensor, "c l"] | None = None,
        attention_mask: Tensor | None = None,
    ) -> CCLMOutput:
        """Features of images and/or texts and, given both, all their similarities; of a classifier its logits."""
        if self.class_head is not None and pixel_values is not None and input_ids is not None:
            return CCLMOutput(logits=self.classify(pixel_values, input_ids, attention_mask))
        image_BE = None if pixel_values is None else self.get_image_features(pixel_values)
        text_CE = None if input_ids is None else self.get_text_features(input_ids, attention_mask)
        logits_BC = None
        if image_BE is not None and text_CE is not None:
            logits_BC = image_BE @ text_CE.T / present(self.temperature, "similarities")()
        return CCLMOutput(
            image_embeds=image_BE,
            text_embeds=text_CE,
            logits_per_image=logits_BC,
            logits_per_text=None if logits_BC is None else logits_BC.T,
            pooler_output=image_BE if text_CE is None else None,
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        words: nn.Embedding = self.text_encoder.embeddings.words  # type: ignore[union-attr,assignment]
        return words

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set the parameters that a module itself holds; HF calls this for each module that has any."""
        std = self._initial_std.get(module)
        if isinstance(module, nn.Linear | nn.Conv2d) and std is None:
            _default_init(module)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | ChannelAffine):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, TextEmbeddings) and module.token_type is not None:
            init.normal_(module.token_type, std=self.config.text["embedding_range"])
        elif isinstance(module, RelativePositionBias):
            init.normal_(module.bias_table, std=0.02)
        elif isinstance(module, BeitEncoder):
            init.normal_(module.class_token, std=0.02)
        elif isinstance(module, BeitBlock):
            init.constant_(module.attention_scale, self.config.vision["layer_scale"])
            init.constant_(module.feedforward_scale, self.config.vision["layer_scale"])
        elif isinstance(module, BiasVector):
            init.zeros_(module.bias)
        elif isinstance(module, MaskedLMDecoder):
            init.normal_(module.weight, std=self.config.text["embedding_range"])
            init.zeros_(module.bias)
        elif isinstance(module, CrossAttention) and module.null_key is not None:
            init.zeros_(module.null_key)
        elif isinstance(module, ConvVisionEncoder):
            init.normal_(module.positions, std=0.02)
        elif isinstance(module, Temperature | SimilarityBias):
            init.constant_(module.value, module.start_value)

    def _collect_initial_std(self, options: ModelOptions) -> dict[nn.Module, float]:
        """Standard deviation at the start of each linear and embedding that does not use PyTorch's own rule."""
        vision, texts = self.vision_encoder, [self.text_encoder.get_submodule("embeddings")]
        stacks: list[tuple[nn.Module, LayerOptions]] = [
            (vision.stack if isinstance(vision, ConvVisionEncoder) else vision, options.vision),
            (self.text_encoder, options.text),
            (self.fusion_encoder.stack, options.fusion),
        ]
        if self.answer_decoder is not None:
            texts.append(self.answer_decoder.embeddings)
            stacks.append((self.answer_decoder.stack, options.fusion))
        std_of: dict[nn.Module, float] = {}
        for embeddings in texts:
            tables = (module for module in embeddings.children() if isinstance(module, nn.Embedding))
            std_of |= dict.fromkeys(tables, options.text.embedding_range)
        for stack, stack_options in stacks:
            if stack_options.initializer_range is not None:
                linears = (module for module in stack.modules() if isinstance(module, nn.Linear))
                std_of |= dict.fromkeys(linears, stack_options.initializer_range)
        return std_of


def _default_init(module: nn.Linear | nn.Conv2d) -> None:
    """PyTorch's own rule, by functions that skip what a checkpoint has filled."""
    bound = module.weight[0].numel() ** -0.5
    init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        init.uniform_(module.bias, -bound, bound)


CCLMConfig.register_for_auto_class()
CCLMModel.register_for_auto_class("AutoModel")
