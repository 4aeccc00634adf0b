"""Encodings: rows of logits to named arrays, and back. Each has a module of its name."""

from .base import (
    FOR_CLASSES,
    FOR_LOGITS,
    FOR_NUMBERS,
    LOSS,
    Encoding,
    HeadEncoding,
    HeadRowsEncoding,
    LatticeSides,
    LinearHead,
    SidesSample,
    encode_logits,
    parse_encoding,
    stores_head,
    stores_sides,
    takes_head_inputs,
)
from .rows import DecodedRows, NumberRows, Rows, Tempered

__all__ = [
    "FOR_CLASSES",
    "FOR_LOGITS",
    "FOR_NUMBERS",
    "LOSS",
    "DecodedRows",
    "Encoding",
    "HeadEncoding",
    "HeadRowsEncoding",
    "LatticeSides",
    "LinearHead",
    "NumberRows",
    "Rows",
    "SidesSample",
    "Tempered",
    "encode_logits",
    "parse_encoding",
    "stores_head",
    "stores_sides",
    "takes_head_inputs",
]
