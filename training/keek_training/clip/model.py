"""The open-clip model that is exported: with real weights, or a seeded one that says so."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from open_clip.transform import PreprocessCfg

from keek_server.errors import SetupError
from keek_server.towers.contract import CLIP_DIMENSION

DEFAULT_MODEL: Final = "ViT-B-32"
SEEDED_MODEL: Final = "seeded-small"
"""The model that is exported without weights: small, and good for showing that everything works."""

_SEED: Final = 20
SMALL: Final[dict[str, Any]] = {
    "embed_dim": CLIP_DIMENSION,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
"""The configuration of SEEDED_MODEL, as open-clip writes its own."""

_SCHEMAS: Final = ("hf-hub:", "local-dir:")
"""What open-clip takes for a model that brings its own configuration and weights."""


@dataclass(frozen=True, slots=True)
class LoadedClip:
    """An open-clip model in evaluation mode, float32, on the CPU."""

    model: Any
    """open_clip.CLIP or CustomTextCLIP."""
    name: str
    pretrained: str | None
    """The tag of the weights, or their file or kind of source; None when untrained."""
    tokenizer: Any
    """open-clip's own SimpleTokenizer."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What open-clip does to pictures before this model: size, mean, std, interpolation, ..."""
        own: dict[str, Any] = open_clip.get_model_preprocess_cfg(self.model)
        return asdict(PreprocessCfg()) | own


def load_clip(name: str | None, pretrained: str | None, *, untrained: bool = False) -> LoadedClip:
    """Loads a model with its weights, or makes a seeded one.

    Args:
        name: open-clip's name of a model (also `hf-hub:...` or `local-dir:...`, which bring their
            weights); None for DEFAULT_MODEL when weights are given, or else for SEEDED_MODEL.
        pretrained: open-clip's tag of weights, or the path of a checkpoint.
        untrained: Whether a model of that name may have seeded weights instead.

    Raises:
        SetupError: When the model or its weights cannot be had, or Keek cannot serve such a model.
    """
    if name is None and pretrained is None:
        return _seeded(SEEDED_MODEL, SMALL)
    name = name or DEFAULT_MODEL
    if name.startswith(_SCHEMAS):
        if pretrained or untrained:
            raise SetupError(f"{name} brings its own weights: give neither --pretrained nor --untrained")
        schema, identifier = name.split(":", 1)
        _config(name)
        return _loaded(_create(name, None), Path(identifier).name, schema)
    config = _config(name)
    if untrained:
        return _seeded(name, config)
    pretrained = _weights(name, pretrained, config)
    shown = Path(pretrained).name if Path(pretrained).is_file() else pretrained
    return _loaded(_create(name, pretrained), name, shown)


def _seeded(name: str, config: dict[str, Any]) -> LoadedClip:
    # The weights are the same each time, whatever else has drawn random numbers.
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(_SEED)
        model = open_clip.CLIP(**config) if name == SEEDED_MODEL else open_clip.create_model(name)
    return _loaded(model, name, None)


def _loaded(model: Any, name: str, pretrained: str | None) -> LoadedClip:
    context = (model.text if hasattr(model, "text") else model).context_length
    tokenizer = open_clip.SimpleTokenizer(context_length=context)
    return LoadedClip(model.float().eval(), name, pretrained, tokenizer)


def _config(name: str) -> dict[str, Any]:
    """open-clip's configuration of a model that Keek can serve."""
    try:
        config: dict[str, Any] | None = open_clip.get_model_config(name)
    except Exception as error:  # the hub's own, and whatever the network raises
        raise SetupError(f"cannot read the configuration of {name}: {_line(error)}") from error
    if config is None:
        raise SetupError(f"open-clip knows no model {name!r}: see open_clip.list_models()")
    if config["embed_dim"] != CLIP_DIMENSION:
        raise SetupError(
            f"{name} makes vectors of {config['embed_dim']} numbers, and the video tower reads "
            f"{CLIP_DIMENSION}: choose a model with embed_dim {CLIP_DIMENSION}, as {DEFAULT_MODEL}"
        )
    text = config["text_cfg"]
    if "hf_model_name" in text or "hf_tokenizer_name" in text or text.get("tokenizer_kwargs"):
        raise SetupError(f"{name} has a tokenizer of its own; only models with CLIP's tokenizer are exported")
    return config


def _weights(name: str, pretrained: str | None, config: dict[str, Any]) -> str:
    """The tag, or the path, after a look at whether it can be one."""
    if pretrained is None:
        raise SetupError(
            f"{name} needs weights: give --pretrained {_choices(name, config)}, "
            "or --untrained for seeded ones"
        )
    if Path(pretrained).is_file():
        return pretrained
    if not open_clip.get_pretrained_cfg(name, pretrained):
        raise SetupError(f"{pretrained!r} is no file and no weights of {name}: give {_choices(name, config)}")
    if not _fits(name, pretrained, config):
        other = name.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{name}-quickgelu"
        raise SetupError(f"the weights {pretrained!r} were trained with another activation: --model {other}")
    return pretrained


def _fits(name: str, tag: str, config: dict[str, Any]) -> bool:
    """Whether weights were trained with the model's activation; open-clip itself only warns."""
    weights = open_clip.get_pretrained_cfg(name, tag)
    return bool(weights.get("quick_gelu")) == bool(config.get("quick_gelu"))


def _choices(name: str, config: dict[str, Any]) -> str:
    tags = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if _fits(name, tag, config)]
    return f"one of {', '.join([*tags[:8], *(['...'] if tags[8:] else [])])}, or a path" if tags else "a path"


def _create(name: str, pretrained: str | None) -> Any:
    try:
        with _quiet():
            return open_clip.create_model(name, pretrained, require_pretrained=True)
    except Exception as error:  # open-clip, torch, safetensors and the hub have no base in common
        if pretrained is not None and Path(pretrained).is_file():
            raise SetupError(f"{pretrained} holds no weights of {name}: {_line(error)}") from error
        source = f"the weights {pretrained!r} of {name}" if pretrained else name
        raise SetupError(
            f"cannot load {source} ({_line(error)}): without access to the hub, give --pretrained the "
            "path of a checkpoint"
        ) from error


def _line(error: Exception) -> str:
    """The start of an error's message; those of torch list every tensor, those of the hub each try."""
    words = " ".join(str(error).partition("Last error:")[0].split()) or type(error).__name__
    return words.rstrip(".") if len(words) <= 200 else f"{words[:200]}..."


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open-clip's messages, which go to the root logger and repeat what it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
