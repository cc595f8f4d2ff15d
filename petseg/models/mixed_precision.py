"""Mixed precision: the dtype policy under which layers are built (--precision)."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Context in which layers are built under a dtype policy: "float32", "mixed_float16" or "mixed_bfloat16".

    `keras.applications` takes the policy from a global variable only.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
