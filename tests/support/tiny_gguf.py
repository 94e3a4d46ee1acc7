"""Write a GGUF file of a few kilobytes: a llama model of one layer with random weights.

Its vocabulary is four control tokens and the 256 bytes. It reads any text, one token per byte, and
writes bytes of which many are invalid UTF-8. It loads in milliseconds.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEADS, HIDDEN, CONTEXT = 32, 2, 64, 1024
CONTROL = ("<unk>", "<s>", "</s>", "<|turn|>")
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Return the type and the value. An integer is unsigned, but signed in a list."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    items = [_value(item) for item in value]
    kind = struct.pack("<I", _I32) if isinstance(value[0], int) else items[0][:4]
    content = b"".join(item[4:] for item in items)
    return struct.pack("<I", _ARRAY) + kind + struct.pack("<Q", len(items)) + content


def write(
    path: Path, *, template: str = "", seed: int = 0, context: int = CONTEXT, fatal: bool = False
) -> Path:
    """Write the file and return its path.

    Args:
        path: Where to write.
        template: A Jinja2 chat template for the file.
        seed: The seed of the weights.
        context: The context length of the model.
        fatal: Give two tokens one name, at which llama.cpp aborts the process.
    """
    tokens = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]
    if fatal:
        tokens[-1] = tokens[-2]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, _CONTROL, *[_BYTE] * 256]
    header: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.license": "mit",
        "llama.context_length": context,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    if template:
        header["tokenizer.chat_template"] = template
    shapes = {
        "token_embd.weight": (len(tokens), WIDTH),
        "output.weight": (len(tokens), WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (WIDTH, WIDTH),
        "blk.0.attn_v.weight": (WIDTH, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_gate.weight": (HIDDEN, WIDTH),
        "blk.0.ffn_up.weight": (HIDDEN, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, HIDDEN),
    }
    random = np.random.default_rng(seed)
    out = struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), len(header))
    out += b"".join(_text(key) + _value(value) for key, value in header.items())
    data = b""
    for name, shape in shapes.items():
        weights = random.normal(0, 0.5, shape).astype("<f4")
        if name == "output.weight":
            weights[1:4] = 0  # the model hardly ever writes an end token
        out += _text(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", size) for size in reversed(shape))
        out += struct.pack("<IQ", 0, len(data))
        data += weights.tobytes()  # every size here is a multiple of the alignment, 32
    path.write_bytes(out + b"\0" * (-len(out) % 32) + data)
    return path
