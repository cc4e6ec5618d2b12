"""What an agent is made of, as plain data and back: its spaces, its encoder, the arguments of its policy.

Nothing here runs what a file says: every name is looked up in a table, every number has a range.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import nn

from mnv4_rl.baselines import ImpalaCNN, ImpoolaCNN
from mnv4_rl.extractors import MNV4CombinedExtractor, MNV4Extractor
from mnv4_rl.models.network import Network
from mnv4_rl.models.spec_json import MAX_NUMBER, encoder_from_dict, spec_to_dict
from mnv4_rl.models.specs import NetworkSpec, TimmSpec
from mnv4_rl.models.timm_network import TimmNetwork
from mnv4_rl.schemas import Schema, refusals, schema_of
from mnv4_rl.weights.pretrained import IN_THE_AGENT

Natural: TypeAlias = Annotated[int, Field(ge=1, le=10**9)]
Whole: TypeAlias = Annotated[int, Field(ge=0, le=10**12)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Factor: TypeAlias = Annotated[float, Field(ge=0, le=1e12)]
Number: TypeAlias = Annotated[float, Field(ge=-1e12, le=1e12)]
Side: TypeAlias = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
Label: TypeAlias = Annotated[str, Field(max_length=200)]

# Spaces

MAX_ENTRIES = 2**24  # of an observation: a picture of 4096x4096
DTypeName: TypeAlias = Literal[
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"
]
Bound: TypeAlias = Number | Literal["-inf", "inf"]


class BoxSpace(Schema):
    """A Box; bounds are one number where all entries share it, else one for each."""

    space: Literal["Box"] = "Box"
    low: Bound | list[Bound]
    high: Bound | list[Bound]
    shape: Annotated[tuple[Side, ...], Field(max_length=8)]
    dtype: DTypeName

    @model_validator(mode="after")
    def _check_size(self) -> BoxSpace:
        if (entries := math.prod(self.shape)) > MAX_ENTRIES:
            raise ValueError(f"an observation has at most {MAX_ENTRIES:,} entries, got {entries:,}")
        return self

    def make(self) -> spaces.Box:
        """The space."""
        dtype = np.dtype(self.dtype)
        # Whole numbers stay floats: the Box itself refuses those that its type cannot hold.
        kept = dtype if dtype.kind == "f" else np.dtype(np.float64)
        low, high = (np.broadcast_to(_spread(end, self.shape, kept), self.shape) for end in (self.low, self.high))
        return spaces.Box(low, high, self.shape, dtype.type)


class DiscreteSpace(Schema):
    """A Discrete space."""

    space: Literal["Discrete"] = "Discrete"
    n: Side
    start: Annotated[int, Field(ge=-(2**31), lt=2**31)]

    def make(self) -> spaces.Discrete:
        """The space."""
        return spaces.Discrete(self.n, start=self.start)


class MultiDiscreteSpace(Schema):
    """A MultiDiscrete space that starts at 0."""

    space: Literal["MultiDiscrete"] = "MultiDiscrete"
    nvec: Annotated[list[Side], Field(min_length=1, max_length=MAX_NUMBER)]

    def make(self) -> spaces.MultiDiscrete:
        """The space."""
        return spaces.MultiDiscrete(self.nvec)


class MultiBinarySpace(Schema):
    """A MultiBinary space."""

    space: Literal["MultiBinary"] = "MultiBinary"
    n: Side

    def make(self) -> spaces.MultiBinary:
        """The space."""
        return spaces.MultiBinary(self.n)


FlatSpace: TypeAlias = Annotated[
    BoxSpace | DiscreteSpace | MultiDiscreteSpace | MultiBinarySpace, Field(discriminator="space")
]


class DictSpace(Schema):
    """A Dict of such spaces, in its own order."""

    space: Literal["Dict"] = "Dict"
    entries: Annotated[dict[Label, FlatSpace], Field(min_length=1, max_length=100)]

    def make(self) -> spaces.Dict:
        """The space."""
        # An ordered one keeps its order, in which the features are concatenated.
        return spaces.Dict(OrderedDict((key, space.make()) for key, space in self.entries.items()))


AnySpace: TypeAlias = Annotated[
    BoxSpace | DiscreteSpace | MultiDiscreteSpace | MultiBinarySpace | DictSpace, Field(discriminator="space")
]


def describe_space(space: spaces.Space) -> Any:
    """A space as one of the schemas here.

    Raises:
        ValueError: If it is of another kind, or out of all proportion.
    """
    match space:
        case spaces.Box():
            low, high = _bound(space.low), _bound(space.high)
            return BoxSpace(low=low, high=high, shape=space.shape, dtype=str(space.dtype))  # type: ignore[arg-type]
        case spaces.Discrete():
            return DiscreteSpace(n=int(space.n), start=int(space.start))
        case spaces.MultiDiscrete() if space.nvec.ndim == 1 and not space.start.any():
            return MultiDiscreteSpace(nvec=space.nvec.tolist())
        case spaces.MultiBinary() if isinstance(space.n, int):
            return MultiBinarySpace(n=space.n)
        case spaces.Dict():
            return DictSpace(entries={key: describe_space(inner) for key, inner in space.spaces.items()})
    raise ValueError(f"spaces of agents are Box, Discrete, MultiDiscrete, MultiBinary and Dict of these, got {space}")


def _bound(values: np.ndarray) -> Any:
    flat = [_to_json(value) for value in (values.flat[:1] if (values == values.flat[0]).all() else values.flat)]
    return flat[0] if len(flat) == 1 else flat


def _to_json(value: Any) -> Any:
    if isinstance(value, np.bool_):
        return int(value)
    return str(value) if math.isinf(value) else value.item()


def _spread(bound: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    values = np.asarray(bound, dtype=np.float64).astype(dtype)
    return values.reshape(shape) if values.ndim else values


# Encoders


@dataclass(frozen=True)
class EncoderRow:
    """An extractor that agents can have.

    Attributes:
        made: Its class.
        has_spec: Whether it is built from a spec.
        image: The class whose arguments it passes on to its images, None without.
    """

    made: type[BaseFeaturesExtractor]
    has_spec: bool = False
    image: type[BaseFeaturesExtractor] | None = None


_ROWS = (
    EncoderRow(MNV4Extractor, has_spec=True),
    EncoderRow(MNV4CombinedExtractor, has_spec=True, image=MNV4Extractor),
    EncoderRow(NatureCNN),
    EncoderRow(ImpalaCNN),
    EncoderRow(ImpoolaCNN),
    EncoderRow(CombinedExtractor),
)
ENCODERS = {row.made.__name__: row for row in _ROWS}
# Told apart from the others: an architecture takes their place.
_SPEC_ARGUMENTS = ("variant", "grid", "pretrained")


class Encoder(Schema):
    """An encoder by its architecture.

    Attributes:
        kind: Its class.
        name: What its variant was called when the agent was saved; for people, nothing is looked up by it.
        spec: The network, whole, or the name of timm's; None for a class that is its own architecture.
        pretrained: Whether it was given trained weights. They are in the agent; none are fetched.
        arguments: The other arguments of its class.
    """

    kind: Annotated[Literal[tuple(ENCODERS)], Field(alias="class")]  # type: ignore[valid-type]
    name: Label
    spec: Annotated[
        NetworkSpec | TimmSpec | None,
        BeforeValidator(lambda data: encoder_from_dict(data) if isinstance(data, dict) else data),
        PlainSerializer(lambda spec: spec and spec_to_dict(spec)),
    ]
    pretrained: bool
    arguments: dict[Label, Side | Number | bool | list[Side] | dict[Label, bool | Side] | None]

    @model_validator(mode="after")
    def _check_arguments(self) -> Encoder:
        if (self.spec is not None) != ENCODERS[self.kind].has_spec:
            raise ValueError(f"{self.kind} has {'a' if self.spec is None else 'no'} spec")
        try:
            self._typed_arguments()
        except ValidationError as error:
            raise ValueError(refusals(error)) from error
        return self

    def _typed_arguments(self) -> dict[str, Any]:
        return _arguments_of(self.kind).model_validate_json(json.dumps(self.arguments)).model_dump()

    def policy_kwargs(self) -> dict[str, Any]:
        """What SB3's policies take."""
        arguments = self._typed_arguments()
        if self.spec is not None:
            arguments |= {"variant": self.spec, "pretrained": IN_THE_AGENT if self.pretrained else False}
        return {"features_extractor_class": ENCODERS[self.kind].made, "features_extractor_kwargs": arguments}


def describe_encoder(policy: nn.Module, arguments: Mapping[str, Any]) -> Encoder:
    """The encoder that a policy has.

    Args:
        policy: The policy.
        arguments: What its extractor was built with: SB3's ``features_extractor_kwargs``.

    Raises:
        ValueError: If it is of no class in :data:`ENCODERS`.
    """
    extractor = next((part for part in policy.modules() if isinstance(part, BaseFeaturesExtractor)), None)
    kind = type(extractor).__name__
    if kind not in ENCODERS or type(extractor) is not ENCODERS[kind].made:
        raise ValueError(f"encoders of agents are {', '.join(ENCODERS)}, got {kind}; use model.save()")
    network = next((part for part in policy.modules() if isinstance(part, Network | TimmNetwork)), None)
    spec = network.spec if network is not None and ENCODERS[kind].has_spec else None
    rest = {key: value for key, value in arguments.items() if key not in _SPEC_ARGUMENTS}
    filled = _arguments_of(kind).model_validate_json(_as_json(rest)).model_dump(mode="json")
    if isinstance(extractor, MNV4Extractor | ImpalaCNN):
        filled["channels_last"] = extractor.channels_last  # as decided, however later versions decide
    return Encoder(
        **{"class": kind},
        name=spec.name if spec else kind,
        spec=spec,
        pretrained=bool(arguments.get("pretrained")),
        arguments=filled,
    )


@cache
def _arguments_of(kind: str) -> type[Schema]:
    row = ENCODERS[kind]
    own = schema_of(row.made, ("observation_space", *_SPEC_ARGUMENTS))
    if row.image is None:
        return own
    passed_on = schema_of(row.image, ("observation_space", "features_dim", *_SPEC_ARGUMENTS))
    return type(kind, (own, passed_on), {})


# Arguments of the policy

ACTIVATIONS: dict[str, type] = {
    c.__name__: c for c in (nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)
}
OPTIMIZERS: dict[str, type] = {
    c.__name__: c for c in (th.optim.Adam, th.optim.AdamW, th.optim.RMSprop, th.optim.SGD, RMSpropTFLike)
}
_CLASSES: dict[str, dict[str, type]] = {"activation_fn": ACTIVATIONS, "optimizer_class": OPTIMIZERS}
Widths: TypeAlias = Annotated[list[Side], Field(max_length=64)]


class Given(Schema):
    """Arguments of which those that are not set are left out, in a file too."""

    @model_serializer(mode="wrap")
    def _only_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


class OptimizerArguments(Given):
    """What SB3 passes on to the optimiser; what is not set is the optimiser's own."""

    eps: Factor | None = None
    betas: tuple[Share, Share] | None = None
    alpha: Share | None = None
    momentum: Factor | None = None
    dampening: Factor | None = None
    weight_decay: Factor | None = None
    amsgrad: bool | None = None
    centered: bool | None = None
    nesterov: bool | None = None
    fused: bool | None = None
    foreach: bool | None = None


class PolicyArguments(Given):
    """What SB3's policies take beside the encoder; what is not set is the policy's own."""

    net_arch: Widths | dict[Literal["pi", "vf", "qf"], Widths] | None = None
    activation_fn: Literal[tuple(ACTIVATIONS)] | None = None  # type: ignore[valid-type]
    ortho_init: bool | None = None
    normalize_images: bool | None = None
    share_features_extractor: bool | None = None
    use_sde: bool | None = None
    log_std_init: Number | None = None
    full_std: bool | None = None
    use_expln: bool | None = None
    squash_output: bool | None = None
    clip_mean: Number | None = None
    n_quantiles: Side | None = None
    n_critics: Annotated[int, Field(ge=1, le=100)] | None = None
    lstm_hidden_size: Side | None = None
    n_lstm_layers: Annotated[int, Field(ge=1, le=100)] | None = None
    shared_lstm: bool | None = None
    enable_critic_lstm: bool | None = None
    optimizer_class: Literal[tuple(OPTIMIZERS)] | None = None  # type: ignore[valid-type]
    optimizer_kwargs: OptimizerArguments | None = None

    def policy_kwargs(self) -> dict[str, Any]:
        """What SB3's policies take."""
        kwargs = self.model_dump()
        return {key: _CLASSES[key].get(value, value) if key in _CLASSES else value for key, value in kwargs.items()}


def describe_policy_arguments(kwargs: Mapping[str, Any]) -> PolicyArguments:
    """SB3's ``policy_kwargs`` without the encoder.

    Raises:
        pydantic.ValidationError: If an argument is of no kind that a file can tell.
    """
    names = {made: name for table in _CLASSES.values() for name, made in table.items()}
    rest = {"optimizer_class": "Adam"} | {  # SB3's own, said, for A2C's constructor would choose another
        key: names.get(value, value) if key in _CLASSES else value
        for key, value in kwargs.items()
        if key not in ("features_extractor_class", "features_extractor_kwargs")
    }
    return PolicyArguments.model_validate_json(_as_json(rest))


def _as_json(arguments: Mapping[str, Any]) -> str:
    """Arguments as a file has them, where lists and tuples are alike; what is no plain data is refused by its name."""
    return json.dumps(arguments, default=str)
