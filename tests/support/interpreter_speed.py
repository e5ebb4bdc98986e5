"""Make Triton's interpreter faster, with the same results.

``install()`` replaces three functions of ``triton.runtime.interpreter`` (seen in Triton 3.6 to 3.9) that
take half of the time of the top-k kernels:

* every call of a device function goes through all members of ``triton.language`` to patch them, although
  the launch that it belongs to has done so;
* every question for a numpy type builds a table of all types;
* a reduction with a function of the kernel's own calls it for one element after the other. Here it is
  called for halves of the axis, as a GPU combines them. Triton demands that the function is associative;
  ours add integers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter


def install() -> None:
    """Replace the slow functions; a second call does nothing."""
    if getattr(interpreter, "_fast", False):
        return
    interpreter._get_np_dtype = _remember_types(interpreter._get_np_dtype)
    _patch_once_a_launch()
    reducer = interpreter.ReduceOps
    reducer.generic_reduce = _reduce_by_halves(reducer.generic_reduce)
    interpreter._fast = True


def _remember_types(find: Callable[[Any], np.dtype]) -> Callable[[Any], np.dtype]:
    known: dict[str, np.dtype] = {}

    def find_once(dtype: Any) -> np.dtype:
        # "int32", "<[64], int32>" or "pointer<int32>"; hashing the type itself is slow
        name = dtype.name
        if name not in known:
            known[name] = find(dtype)
        return known[name]

    return find_once


def _patch_once_a_launch() -> None:
    """A device function finds ``triton.language`` patched by its launch or by a function before it."""
    patch_lang, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()
    used_by: dict[Any, frozenset[int]] = {}

    def find_langs(fn: Any) -> frozenset[int]:
        if fn not in used_by:
            found = (v for v in fn.__globals__.values() if inspect.ismodule(v))
            used_by[fn] = frozenset(id(v) for v in found if v in (tl, tl.core))
        return used_by[fn]

    def patch_new(fn: Any) -> Any:
        langs = find_langs(fn)
        if langs and langs <= patched:
            return interpreter._LangPatchScope()  # nothing to restore
        patched.update(langs)
        return patch_lang(fn)

    def launch_patched(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()  # the last launch restored what it had patched
        launch(self, *args, **kwargs)

    interpreter._patch_lang = patch_new
    interpreter.GridExecutor.__call__ = launch_patched


def _reduce_by_halves(generic: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``ReduceOps.generic_reduce``, where the axis has a power of two elements, as every axis has."""

    def reduce(self: Any, inputs: tuple[Any, ...]) -> Any:
        axis = self.axis
        if axis is None:
            return generic(self, inputs)
        while inputs[0].handle.data.shape[axis] > 1:
            halves = [np.split(one.handle.data, 2, axis) for one in inputs]
            first, second = (
                [self.to_tensor(h[side], one.dtype) for h, one in zip(halves, inputs, strict=True)]
                for side in (0, 1)
            )
            made = self.combine_fn.fn(*first, *second)
            inputs = made if isinstance(made, tuple) else (made,)
        data = [one.handle.data for one in inputs]
        data = data if self.keep_dims else [one.squeeze(axis) for one in data]
        return [
            self.to_tensor(part if part.shape else part.item(), one.dtype)
            for part, one in zip(data, inputs, strict=True)
        ]

    return reduce
