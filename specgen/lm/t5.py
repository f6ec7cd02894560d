"""MusicGen's text condition: a frozen T5 encoder and the language model's own projection.

The arithmetic is that of audiocraft's `T5Conditioner` (`modules/conditioners.py`) and of
transformers' `MusicgenForConditionalGeneration`: T5's last hidden states, the projection with its
bias, then zero wherever no token stands. An empty prompt has no token that counts, so the null
condition of guidance is zeros.
"""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.errors import UserError
from specgen.lm.conditioning import Words
from specgen.tensors import bare

T = TypeVar("T")
MAX_TOKENS = 512  # what T5 was trained on
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
TOKENIZER_NAME = "tokenizer.json"
_SHARED_TABLE, _TIED = "shared.weight", "encoder.embed_tokens.weight"  # one table, two names
_REMEMBERED = 256  # prompts whose hidden states are kept


class TextEncoder:
    """A frozen T5 encoder with its tokenizer: on the CPU, in float32, read at first use.

    A prompt is run once: its hidden states are remembered, so a drafter that shares the encoder of
    its verifier (`TextEncoder.of`) costs nothing more, and neither does a second clip.

    Args:
        name: what it is called, for messages and for the hub.
        folder: holds `config.json`, `model.safetensors` and `tokenizer.json`; None asks the hub's
            local cache, then the hub.
        revision: commit, tag or branch on the hub.
        model: the encoder, where it came inside a checkpoint; `folder` then holds the tokenizer.
    """

    def __init__(
        self,
        name: str,
        folder: Path | None = None,
        revision: str | None = None,
        *,
        model: nn.Module | None = None,
    ) -> None:
        self.name, self.folder, self.revision = name, folder, revision
        self._model = model
        self._own_files = model is None
        self._tokenizer: Any = None
        self._remembered: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def of(cls, name: str, folder: Path | None = None, revision: str | None = None) -> TextEncoder:
        """The encoder of these files that somebody holds already, or a new one."""
        key = (name, folder, revision)
        encoder = _SHARED.get(key)
        if encoder is None:
            encoder = _SHARED[key] = cls(name, folder, revision)
        return encoder

    def ids(self, text: str) -> list[int]:
        """Token ids of a prompt, the end token included.

        Raises:
            UserError: more than `MAX_TOKENS`, or a tokenizer that cannot be read.
        """
        if self._tokenizer is None:
            self._tokenizer = self._read(TOKENIZER_NAME, _read_tokenizer)
        ids: list[int] = self._tokenizer.encode(text).ids
        if len(ids) > MAX_TOKENS:
            raise UserError(
                f"the prompt has {len(ids)} tokens, the text encoder {self.name} reads up to "
                f"{MAX_TOKENS}: shorten it"
            )
        return ids

    @torch.inference_mode()
    def hidden(self, text: str) -> Tensor:
        """T5's last hidden states `[L, t5_dim]` of a prompt, on the CPU.

        Raises:
            UserError: see `ids`, or weights that cannot be read.
        """
        if text in self._remembered:
            self._remembered.move_to_end(text)
            return self._remembered[text]
        ids = self.ids(text)
        model = self._model
        if model is None:
            config = self._read(CONFIG_NAME, _read_config)
            model = self._model = build_t5(config, self._read(WEIGHTS_NAME, _read_weights))
        if max(ids) >= model.config.vocab_size:  # type: ignore[union-attr, operator]
            raise UserError(
                f"the tokenizer of text encoder {self.name} knows more tokens than its weights: "
                "use the files of one checkpoint"
            )
        states: Tensor = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        self._remembered[text] = states
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return states

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    def free(self) -> None:
        """Let go of the weights; they are read again when a new prompt comes.

        Weights that came inside a checkpoint have no file of their own and stay.
        """
        if self._own_files:
            self._model = None

    def save(self, folder: Path) -> None:
        """Write `config.json`, `model.safetensors` and `tokenizer.json`, for another encoder.

        Raises:
            UserError: a tokenizer or weights that cannot be read.
        """
        self.hidden("")
        assert self._model is not None
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / TOKENIZER_NAME))
        config = self._model.config.to_dict()  # type: ignore[union-attr, operator]
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
        state = {k: v for k, v in self._model.state_dict().items() if k != _TIED}
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        (folder / WEIGHTS_NAME).chmod(0o644)

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        """One of the encoder's files.

        Raises:
            UserError: it is missing, cannot be fetched, or is corrupt.
        """
        _check_installed()
        path = self.folder / name if self.folder is not None else self._fetch(name)
        if not path.is_file():
            raise UserError(
                f"text encoder folder {self.folder} has no {name}: it must hold {CONFIG_NAME}, "
                f"{WEIGHTS_NAME} and {TOKENIZER_NAME}, as '{self._command}' fetches them"
            )
        try:
            return read(path)
        except UserError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{path} of the text encoder is corrupt ({reason}): fetch it again"
            ) from None

    @property
    def _command(self) -> str:
        revision = "" if self.revision is None else f" --revision {self.revision}"
        return f"hf download {self.name}{revision}"

    def _fetch(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            return Path(hf_hub_download(self.name, name, revision=self.revision))
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"cannot fetch {name} of text encoder {self.name} ({reason}): run "
                f"'{self._command}' where there is a network, or put its files into the "
                "checkpoint's text_encoder folder"
            ) from None


def _check_installed() -> None:
    if importlib.util.find_spec("transformers") is None:  # it brings tokenizers and the hub
        raise UserError(
            "MusicGen models read their prompt through transformers, which is not installed: "
            "pip install 'specgen[musicgen]'"
        )


def _read_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_config(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no mapping")
    return values


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The encoder's share of the tensors: T5's own files hold a decoder, too."""
    weights = load_file(path)
    return {k: v for k, v in weights.items() if k.startswith("encoder.") or k == _SHARED_TABLE}


_SHARED: WeakValueDictionary[tuple[str, Path | None, str | None], TextEncoder] = (
    WeakValueDictionary()
)


class T5Conditioner:
    """Prompts to conditions, as the language model's cross-attention reads them.

    Each prompt is encoded by itself, so that its condition does not depend on its neighbours. That
    is what audiocraft and transformers compute for a batch of one. In a larger batch audiocraft
    pads the shorter prompts with zero vectors, which its cross-attention does not mask: each adds a
    key of logit 0 and a value of 0, so a prompt's music there depends on how long its neighbours
    are. Here padding is masked off, and it does not.

    Args:
        name: of the T5 model, such as `t5-base`; a hub id where `folder` is None.
        dim: width of the condition.
        weight: `[dim, t5_dim]` projection; None where there is none (`dim` is then `t5_dim`).
        bias: `[dim]` of the projection, or None.
        folder, revision: see `TextEncoder`.
        encoder: an encoder that is loaded already.

    Raises:
        ValueError: a projection of another width.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        weight: Tensor | None,
        bias: Tensor | None = None,
        *,
        folder: Path | None = None,
        revision: str | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        if weight is not None and (weight.dim() != 2 or len(weight) != dim):
            raise ValueError(f"projection of shape {tuple(weight.shape)} does not give {dim}")
        if bias is not None and bias.shape != (dim,):
            raise ValueError(f"bias of shape {tuple(bias.shape)} does not fit {dim}")
        self.name, self.dim = name, dim
        self.weight, self.bias = weight, bias
        self.encoder = encoder or TextEncoder.of(name, folder, revision)
        self.device = torch.device("cpu") if weight is None else weight.device
        self.dtype = torch.float32

    @classmethod
    def from_transformers(
        cls,
        text_config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        proj_weight: Tensor | None,
        proj_bias: Tensor | None,
        tokenizer_folder: Path,
    ) -> T5Conditioner:
        """A conditioner whose T5 weights came inside the checkpoint.

        Args:
            text_config: T5's `config.json`, here the `text_encoder` part of a MusicGen one.
            state: `T5EncoderModel`'s tensors, without the `text_encoder.` in front.
            proj_weight, proj_bias: of `enc_to_dec_proj`, None where the checkpoint has none.
            tokenizer_folder: holds `tokenizer.json`.

        Raises:
            UserError: tensors that are missing, not T5's, or of the wrong shape.
        """
        encoder = TextEncoder(
            str(text_config.get("_name_or_path") or "t5"),
            tokenizer_folder,
            model=build_t5(text_config, state),
        )
        width = int(text_config["d_model"])
        dim = width if proj_weight is None else len(proj_weight)
        return cls(encoder.name, dim, proj_weight, proj_bias, encoder=encoder)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> T5Conditioner:
        """Where conditions go and in which dtype. T5 stays on the CPU in float32, and so does the
        projection, once a prompt: only the result is moved and rounded."""
        self.device = self.device if device is None else torch.device(device)
        self.dtype = dtype or self.dtype
        return self

    def tokenize(self, text: str) -> Words:
        """Token ids of a prompt; T5's pieces spell any text, so no word is unknown.

        Raises:
            UserError: a prompt that is too long, or a tokenizer that cannot be read.
        """
        return Words(self.encoder.ids(text), [])

    def null(self) -> Tensor:
        """The null condition of guidance, `[1, 1, dim]` zeros.

        One place is enough: every key of a null prompt is the same, so the cross-attention's
        output is the value's bias whatever their number, and exactly zero in a model without
        biases.
        """
        return torch.zeros(1, 1, self.dim, device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Conditions of a batch of prompts.

        Returns:
            Vectors `[B, L, dim]`, zero where padded, and mask `[B, L]` bool. An empty prompt is
            the null condition: one zero vector, whose place counts as real.

        Raises:
            UserError: see `tokenize`, or a T5 that cannot be read or has another width.
        """
        rows = [self._encode(text) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        vectors = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(vectors.shape[1])[None] < lengths[:, None]
        return vectors.to(self.device, self.dtype), mask.to(self.device)

    def _encode(self, text: str) -> Tensor:
        if text == "":
            return torch.zeros(1, self.dim)
        states = self.encoder.hidden(text)
        width = self.dim if self.weight is None else self.weight.shape[1]
        if states.shape[-1] != width:
            raise UserError(
                f"text encoder {self.name} gives vectors of {states.shape[-1]} numbers, the "
                f"language model's projection reads {width}: name the T5 it was trained with"
            )
        if self.weight is None:
            return states
        bias = None if self.bias is None else self.bias.float().cpu()
        return F.linear(states, self.weight.float().cpu(), bias)


def build_t5(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """transformers' T5 encoder from plain data, in float32 on the CPU, without gradients.

    Raises:
        UserError: tensors that are missing, not T5's, or of the wrong shape.
    """
    _check_installed()
    from transformers import T5Config, T5EncoderModel

    try:
        settings = T5Config(**dict(config))
        with bare():
            model = T5EncoderModel(settings)
    except (TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the text encoder's configuration is no T5's ({reason})") from None
    tensors = {name: value.detach().to("cpu", torch.float32) for name, value in state.items()}
    table = tensors.get(_SHARED_TABLE, tensors.get(_TIED))
    if table is not None:
        tensors |= {_SHARED_TABLE: table, _TIED: table}
    expected = model.state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys())
    wrong += [n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape]
    if wrong:
        raise UserError(
            f"the text encoder's weights do not fit its configuration ({wrong[0]} and "
            f"{len(wrong) - 1} more): use the files of one checkpoint"
        )
    model.load_state_dict(tensors, assign=True)
    module: nn.Module = model.requires_grad_(False)
    return module.eval()
