"""The released configuration of QG-MIL and our options, one into the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from qgmil.errors import ConfigError
from qgmil.layers.feedforward import PlainMLP
from qgmil.layers.norm import RMSNorm

if TYPE_CHECKING:
    from qgmil.models.qgmil import QGMIL

#: Fields of the release that change nothing there; accepted on import, given their defaults on export.
DEAD_FIELDS: dict[str, Any] = {
    "mlp_ratio": 4.0,
    "use_positional_encoding": False,
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 0,
    "_attn_implementation": "sdpa",
    "rope_scaling": None,
}
_LIVE_FIELDS = (
    *("in_dim", "embed_dim", "num_classes", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "attention_dropout", "headwise_attn_output_gate"),
    *("elementwise_attn_output_gate", "use_qk_norm", "qkv_bias", "use_rms_norm", "rms_norm_eps", "hidden_act"),
    *("dropout", "num_layers", "pooling", "use_cls_token"),
)


def options_of_release(config: Mapping[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """``(in_dim, num_classes, our options)`` of a released configuration.

    Raises:
        ConfigError: unknown fields, missing sizes, or a combination that the release treats as something else
            than it says (a class token that is not pooled, pooling by a token that is not there).
    """
    unknown = [name for name in config if name not in _LIVE_FIELDS and name not in DEAD_FIELDS]
    if unknown:
        raise ConfigError(f"not fields of the released configuration: {', '.join(unknown)}")
    missing = [name for name in ("in_dim", "num_classes") if name not in config]
    if missing:
        raise ConfigError(f"the released configuration lacks {' and '.join(missing)}")
    pooling, token = config.get("pooling", "attention"), config.get("use_cls_token", False)
    if (pooling == "cls") != token:
        raise ConfigError(
            f"pooling={pooling!r} with use_cls_token={token}: only pooling='cls' with use_cls_token=True pools the "
            "class token; the release falls back to something else silently, so this is refused"
        )
    if config.get("headwise_attn_output_gate") and config.get("elementwise_attn_output_gate"):
        raise ConfigError("headwise_attn_output_gate and elementwise_attn_output_gate exclude each other")
    gate = "elementwise" if config.get("elementwise_attn_output_gate") else "none"
    gate = "headwise" if config.get("headwise_attn_output_gate") else gate
    norm = "rms" if config.get("use_rms_norm", True) else "layer"
    width = config.get("embed_dim", config.get("hidden_size", 512))
    heads = config.get("num_attention_heads", 8)
    options = {
        "width": width,
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads", heads),
        "head_dim": config.get("head_dim", 512 // heads),
        "num_layers": config.get("num_layers", 1),
        "ffn_dim": config.get("intermediate_size", 2048),
        "dropout": config.get("dropout", 0.25),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "gate": gate,
        "norm": norm,
        "qk_norm": norm if config.get("use_qk_norm", True) else "none",
        "activation": config.get("hidden_act", "silu"),
        "bias": config.get("qkv_bias", False),
        "pooling": pooling,
        "eps": config.get("rms_norm_eps", 1e-6),
    }
    return config["in_dim"], config["num_classes"], options


def released_config(model: QGMIL) -> dict[str, Any]:
    """The released configuration of a model of ours.

    Raises:
        ConfigError: a plain MLP, clustered keys, or a q/k norm of another kind than the others: the release has none.
    """
    block = model.blocks[0]
    attention = block.self_attn
    if isinstance(block.mlp, PlainMLP):
        raise ConfigError("the release has no plain MLP: a model with mlp='plain' cannot be exported")
    if attention.key_clusters is not None:
        raise ConfigError("the release attends to all keys: a model with key_clusters cannot be exported")
    rms = isinstance(model.final_norm, RMSNorm)
    has_qk_norm = hasattr(attention.q_norm, "weight")
    if has_qk_norm and isinstance(attention.q_norm, RMSNorm) != rms:
        raise ConfigError("the release norms q and k as the stream: a model with another qk_norm cannot be exported")
    return {
        **DEAD_FIELDS,
        "in_dim": model.in_dim,
        "embed_dim": model.width,
        "num_classes": model.num_classes,
        "hidden_size": model.width,
        "intermediate_size": block.mlp.gate_proj.out_features,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "attention_dropout": model.attention_dropout,
        "headwise_attn_output_gate": attention.gate == "headwise",
        "elementwise_attn_output_gate": attention.gate == "elementwise",
        "use_qk_norm": has_qk_norm,
        "qkv_bias": attention.q_proj.bias is not None,
        "use_rms_norm": rms,
        "rms_norm_eps": model.eps,
        "hidden_act": model.activation,
        "dropout": block.dropout.p,
        "num_layers": len(model.layers),
        "pooling": model.pooling_kind,
        "use_cls_token": model.cls_token is not None,
    }


def infer_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The released configuration, read off the weights.

    The kind of gate and the heads follow from the projections' sizes; where they do not (no q/k norm and no
    headwise gate, or mean against max pooling), the configuration must be given.

    Raises:
        ConfigError: not a QG-MIL checkpoint, or not decidable.
    """
    try:
        width, in_dim = state["input_proj.0.weight"].shape
        q_rows = state["layers.0.self_attn.q_proj.weight"].shape[0]
        kv_rows = state["layers.0.self_attn.k_proj.weight"].shape[0]
        inner = state["layers.0.self_attn.o_proj.weight"].shape[1]
        ffn = state["layers.0.mlp.gate_proj.weight"].shape[0]
        classes = state["classifier.3.weight"].shape[0]
    except KeyError as error:
        raise ConfigError(f"not a checkpoint of the QG-MIL release: it has no weight {error}") from None
    norm_weight = state.get("layers.0.self_attn.q_norm.weight")
    if norm_weight is not None:
        head_dim = norm_weight.shape[0]
    elif inner < q_rows < 2 * inner:
        head_dim = inner // (q_rows - inner)
    else:
        raise ConfigError("the weights do not show the size of a head: pass config with num_attention_heads and so on")
    if "pooling.attention_V.0.weight" in state:
        pooling = "attention"
    elif "cls_token" in state:
        pooling = "cls"
    else:
        raise ConfigError("the weights do not show whether the model pools by mean or max: pass config with pooling")
    return {
        "in_dim": in_dim,
        "embed_dim": width,
        "num_classes": classes,
        "intermediate_size": ffn,
        "num_attention_heads": inner // head_dim,
        "num_key_value_heads": kv_rows // head_dim,
        "head_dim": head_dim,
        "headwise_attn_output_gate": inner < q_rows < 2 * inner,
        "elementwise_attn_output_gate": q_rows == 2 * inner,
        "use_qk_norm": norm_weight is not None,
        "qkv_bias": "layers.0.self_attn.q_proj.bias" in state,
        "use_rms_norm": "final_norm.bias" not in state,
        "num_layers": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers.")),
        "pooling": pooling,
        "use_cls_token": pooling == "cls",
    }
