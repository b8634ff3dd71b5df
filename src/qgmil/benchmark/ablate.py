"""One-factor ablations of QG-MIL: which variants there are, and what each of them moves.

A variant departs from the base configuration in one factor. The components are also switched on one at a time on a
plain transformer, which is QG-MIL with LayerNorm, without QK norm and gate, and with a GELU feed-forward of as many
parameters as SwiGLU's. The released presets are there as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qgmil.errors import ConfigError
from qgmil.models.registry import create_model, find_entry, model_options
from qgmil.training.config import ModelConfig

FACTORS = ("norm", "qk_norm", "gate", "mlp", "depth", "heads", "pooling", "components", "presets")
GATES = {"headwise": "a gate for each head", "elementwise": "a gate for each channel", "none": "no gate"}
POOLINGS = {
    "attention": "gated attention pooling", "mean": "mean pooling", "max": "maximum pooling", "cls": "a class token",
}  # fmt: skip
DEPTHS, HEADS = (1, 2, 4), (1, 4, 8, 16)
NORMS = {"rms": "RMSNorm", "layer": "LayerNorm", "none": "no norm"}
PLAIN: dict[str, Any] = {"norm": "layer", "qk_norm": "none", "gate": "none", "mlp": "plain", "activation": "gelu"}
COMPONENTS: dict[str, tuple[dict[str, Any], str]] = {
    "rms": ({"norm": "rms"}, "RMSNorm alone on the plain transformer (QK norm stays off)"),
    "qk_norm": ({"qk_norm": "rms"}, "QK norm (RMS) alone on the plain transformer"),
    "gate": ({"gate": "headwise"}, "a gate for each head alone on the plain transformer"),
    "swiglu": ({"mlp": "swiglu", "activation": "silu"}, "SwiGLU alone on the plain transformer; as many parameters"),
    "cls": ({"pooling": "cls"}, "the plain transformer with a class token instead of attention pooling"),
}
PRESETS = (
    "qgmil", "qgmil_elementwise", "qgmil_no_gate", "qgmil_layernorm", "qgmil_no_qknorm", "qgmil_minimal", "qgmil_deep",
    "qgmil_light",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One model of an ablation.

    Args:
        name: its label in the results.
        factor: one of `FACTORS`, or "base".
        moved: what is different from `reference`, in one line.
        model, options: how it is built: a registered name and its options.
        reference: the variant that it is compared with; None for the base.
        matched: it has as many parameters as its reference, within 1 %.
        same_as: the variant that is this model under another name, whose cells count for it; None where there is none.
    """

    name: str
    factor: str
    moved: str
    model: str
    options: Mapping[str, Any]
    reference: str | None
    matched: bool = False
    same_as: str | None = None

    @property
    def trained_as(self) -> str:
        """The label of the cells that belong to it."""
        return self.same_as or self.name

    @property
    def resolved(self) -> dict[str, Any]:
        """Every option of the model that is built, nothing left to a default."""
        return resolved(self.model, self.options)


def variants(
    base: str = "qgmil", options: Mapping[str, Any] | None = None, only: Collection[str] = ()
) -> tuple[Variant, ...]:
    """The variants of a base configuration, the base first.

    Args:
        base: a registered QG-MIL.
        options: of the base, and with it of all variants; presets keep those that they set themselves.
        only: factors to move; none: all of `FACTORS`.

    Raises:
        ConfigError: a base that is no QG-MIL, an unknown factor or option, or values that do not go together.
    """
    from qgmil.models.qgmil import QGMIL

    if not issubclass(find_entry(base).cls, QGMIL):
        raise ConfigError(
            f"base={base!r} is no QG-MIL: ablations move its components; take one of {', '.join(PRESETS)}"
        )
    for factor in only:
        if factor not in FACTORS:
            close = difflib.get_close_matches(factor, FACTORS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"there is no factor {factor!r}: {hint}there are {', '.join(FACTORS)}")
    given = ModelConfig(options=dict(options or {})).options
    create_model(base, in_dim=8, num_classes=2, **given)  # names the option that is wrong
    first = Variant(base, "base", "the base configuration", base, given, None)
    made = [first]
    for factor in FACTORS:
        if not only or factor in only:
            made += _MAKERS[factor](first)
    return _merged(made)


def resolved(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a QG-MIL, with those that follow from others filled in as the model does."""
    entry = find_entry(model)
    derived = entry.cls.derived_options
    dropped = {o for o in entry.preset if any(source in options for source in derived.get(o, ()))}
    defaults = {**model_options(model), **dict.fromkeys(dropped)}
    values = {**defaults, **options}
    values["qk_norm"] = values["norm"] if values["qk_norm"] is None else values["qk_norm"]
    values["num_kv_heads"] = values["num_heads"] if values["num_kv_heads"] is None else values["num_kv_heads"]
    values["head_dim"] = values["width"] // values["num_heads"] if values["head_dim"] is None else values["head_dim"]
    return values


def changes(variant: Variant, reference: Variant) -> dict[str, tuple[Any, Any]]:
    """The options in which two variants differ, {name: (reference, variant)}."""
    a, b = reference.resolved, variant.resolved
    return {name: (a[name], b[name]) for name in b if a[name] != b[name]}


def _moved(base: Variant, name: str, factor: str, moved: str, matched: bool = False, **changed: Any) -> Variant:
    """The base with some options changed. QK norm follows the norm unless it is given: here it stays."""
    options = {**base.options, **changed}
    if "norm" in changed and "qk_norm" not in changed:
        options["qk_norm"] = base.resolved["qk_norm"]
    return Variant(name, factor, moved, base.model, options, base.name, matched)


def _norm(base: Variant) -> list[Variant]:
    now, qk = base.resolved["norm"], base.resolved["qk_norm"]
    other = "layer" if now == "rms" else "rms"
    line = f"{NORMS[other]} instead of {NORMS[now]}"
    made = [_moved(base, f"norm={other}", "norm", f"{line} (QK norm stays: {qk})", True, norm=other)]
    if qk not in ("none", other):
        made.append(
            _moved(base, f"norm={other}+qk", "norm", f"{line}, on Q and K as well", True, norm=other, qk_norm=other)
        )
    return made


def _qk_norm(base: Variant) -> list[Variant]:
    if base.resolved["qk_norm"] == "none":
        return [_moved(base, "qk_norm=rms", "qk_norm", "RMSNorm on Q and K", True, qk_norm="rms")]
    return [_moved(base, "qk_norm=none", "qk_norm", "no norm on Q and K", True, qk_norm="none")]


def _gate(base: Variant) -> list[Variant]:
    now = base.resolved["gate"]
    return [
        _moved(base, f"gate={gate}", "gate", f"{what} instead of {GATES[now]}", gate=gate)
        for gate, what in GATES.items()
        if gate != now
    ]


def _mlp(base: Variant) -> list[Variant]:
    if base.resolved["mlp"] == "plain":
        return [
            _moved(base, "mlp=swiglu", "mlp", "SwiGLU instead of the plain MLP, as many parameters", True, mlp="swiglu")
        ]
    line = "a plain MLP with the same activation instead of SwiGLU, as many parameters"
    return [_moved(base, "mlp=plain", "mlp", line, True, mlp="plain")]


def _depth(base: Variant) -> list[Variant]:
    now = base.resolved["num_layers"]
    return [
        _moved(base, f"depth={n}", "depth", f"{n} block{'s' if n > 1 else ''} instead of {now}", num_layers=n)
        for n in DEPTHS
        if n != now
    ]


def _heads(base: Variant) -> list[Variant]:
    """Other numbers of heads over the same total width, so that all parameters stay but those of a gate a head."""
    now = base.resolved
    total = now["num_heads"] * now["head_dim"]
    fixed = total != now["width"] or base.options.get("head_dim") is not None
    groups = base.options.get("num_kv_heads")
    made = []
    for n in HEADS:
        if n == now["num_heads"] or total % n or (groups is not None and n % groups):
            continue
        changed = {"num_heads": n, **({"head_dim": total // n} if fixed else {})}
        line = f"{n} head{'s' if n > 1 else ''} of {total // n} instead of {now['num_heads']} of {now['head_dim']}"
        made.append(_moved(base, f"heads={n}", "heads", line, **changed))
    return made


def _pooling(base: Variant) -> list[Variant]:
    now = base.resolved["pooling"]
    return [
        _moved(base, f"pooling={pooling}", "pooling", f"{what} instead of {POOLINGS[now]}", pooling=pooling)
        for pooling, what in POOLINGS.items()
        if pooling != now
    ]


def _components(base: Variant) -> list[Variant]:
    line = "plain transformer: LayerNorm, no QK norm, no gate, GELU feed-forward of as many parameters as SwiGLU"
    plain = _moved(base, "plain", "components", line, **PLAIN)
    made = [plain]
    for name, (changed, moved) in COMPONENTS.items():
        if any(plain.resolved[option] != value for option, value in changed.items()):
            matched = name not in ("gate", "cls")
            made.append(_moved(plain, f"plain+{name}", "components", moved, matched, **changed))
    return made


def _presets(base: Variant) -> list[Variant]:
    """The released presets; what a preset sets itself stays as released, other given options apply to it too."""
    made = []
    for name in PRESETS:
        entry = find_entry(name)
        own = {*entry.preset, *(source for option in entry.preset for source in _sources(entry.cls, option))}
        given = {option: value for option, value in base.options.items() if option not in own}
        sizes = {option: base.options[option] for option in base.options if option not in given}
        kept = f" (keeps its own {', '.join(sorted(sizes))})" if sizes else ""
        preset = Variant(name, "presets", f"{entry.summary}{kept}", name, given, base.name)
        if name != base.name:
            made.append(preset)
    return made


def _sources(cls: Any, option: str) -> tuple[str, ...]:
    """Options that would make the model drop a preset's value of this option."""
    return tuple(cls.derived_options.get(option, ()))


_MAKERS = {
    "norm": _norm, "qk_norm": _qk_norm, "gate": _gate, "mlp": _mlp, "depth": _depth, "heads": _heads,
    "pooling": _pooling, "components": _components, "presets": _presets,
}  # fmt: skip


def _merged(made: list[Variant]) -> tuple[Variant, ...]:
    """Variants that are the same model are trained once."""
    seen: dict[str, str] = {}
    found = []
    for variant in made:
        key = repr(sorted(variant.resolved.items(), key=lambda item: item[0]))
        if key in seen:
            variant = replace(variant, same_as=seen[key])
        else:
            seen[key] = variant.name
        found.append(variant)
    return tuple(found)


def models_section(plan: Collection[Variant], train: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The variants as the section `models` of a benchmark, each model once, all with these fields of training."""
    own = {"train": dict(train)} if train else {}
    return {v.name: {"model": v.model, "options": dict(v.options), **own} for v in plan if v.same_as is None}


def check_recipe(plan: Collection[Variant], recipe: Any, source: str) -> None:
    """Refuse the published recipe where variants have none.

    Raises:
        ConfigError: with `source`, which asked for it.
    """
    without = [v.name for v in plan if not find_entry(v.model).cls.published_recipe]
    if recipe == "published" and without:
        raise ConfigError(
            f"{source}: no published recipe of {without[0]!r} is known, and variants are compared under one recipe; "
            "use --recipe common"
        )
