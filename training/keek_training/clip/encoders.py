"""The two encoders as they are exported: from bytes and tokens to unit vectors."""

from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional


class ImageEncoder(torch.nn.Module):  # type: ignore[misc]
    """uint8 pixels [n, 3, size, size] to float32 [n, CLIP_DIMENSION], L2-normalised."""

    def __init__(self, model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model.visual
        # (x / 255 - mean) / std, as one multiplication and one addition.
        self.register_buffer("scale", 1 / (255 * _channels(std)))
        self.register_buffer("shift", -_channels(mean) / _channels(std))

    def forward(self, pixels: Any) -> Any:
        """Scales, encodes, normalises."""
        return functional.normalize(self.model(pixels.float() * self.scale + self.shift), dim=-1)


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """int32 tokens [n, length] to float32 [n, CLIP_DIMENSION], L2-normalised.

    When `dynamic_length` holds, the length is free. No position looks at later ones and the vector
    is read where the text ends, so padding changes nothing, and its time can be saved.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encode = _EncodeText(model)
        self.dynamic_length = is_causal(model)

    def forward(self, tokens: Any) -> Any:
        """Encodes with as much of the positions and of the causal mask as the texts are long."""
        if not self.dynamic_length:
            return self.encode(tokens)
        length = tokens.shape[1]
        text = text_tower(self.encode.model)
        prefix = "model." if text is self.encode.model else "model.text."
        shortened = {
            f"{prefix}positional_embedding": text.positional_embedding[:length],
            f"{prefix}attn_mask": text.attn_mask[:length, :length],
        }
        return functional_call(self.encode, shortened, (tokens,))


class _EncodeText(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Any) -> Any:
        return functional.normalize(self.model.encode_text(tokens), dim=-1)


def text_tower(model: Any) -> Any:
    """What holds the text side's parts: `model.text`, or the model itself (open_clip.CLIP)."""
    return model.text if hasattr(model, "text") else model


def is_causal(model: Any) -> bool:
    """Whether a text's vector is the same without its padding."""
    text = text_tower(model)
    pool = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
    return causal and pool in ("argmax", "eos")


def _channels(values: tuple[float, ...]) -> Any:
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
