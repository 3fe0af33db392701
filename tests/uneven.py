"""Products of matrices by a processor that treats the rows of a batch unequally.

A matrix library cuts a batch into blocks of rows and hands the remaining rows to another kernel,
which adds in another order. Whether the last bit shows it depends on the processor and the sizes.
Here it shows as often as it can: about half of the rows, which ones depends on the number of rows,
are added from the other end. Equal calls still give equal bits, and products without rounding stay
exact.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Operators by the place of their two factors among the arguments.
OPERATORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
FORMS = ("", ".out")


@contextlib.contextmanager
def uneven_products() -> Iterator[None]:
    """While the block lasts, in every thread, products on the CPU depend on a row's place."""
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            for name, place in OPERATORS.items():
                products = [_uneven(name, form, place) for form in FORMS]
                for form, product in zip(FORMS, products, strict=True):
                    library.impl(name + form, product, "CPU", with_keyset=True)
        yield
    finally:
        library._destroy()


@functools.cache
def _turned(rows: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(rows).random(rows) < 0.5).nonzero().squeeze(1)


def _uneven(name: str, form: str, place: int) -> Callable[..., Tensor]:
    whole = torch.library.get_kernel(f"aten::{name}{form}", "CPU")
    part = torch.library.get_kernel(f"aten::{name}", "CPU")

    def product(keys: Any, *args: Any, **kwargs: Any) -> Tensor:
        left, right = args[place : place + 2]
        if not left.is_floating_point():
            result: Tensor = whole.call_boxed(keys, *args, **kwargs)
            return result
        turned = (..., _turned(left.shape[-2]), slice(None))
        shape = (*left.shape[:-1], right.shape[-1])
        added = [x.expand(shape)[turned] for x in args[:place]]
        options = {key: value for key, value in kwargs.items() if key != "out"}
        # These rows first: the result may overwrite what it is made of.
        rows = part.call_boxed(keys, *added, left[turned].flip(-1), right.flip(-2), **options)
        result = whole.call_boxed(keys, *args, **kwargs)
        result[turned] = rows
        return result

    return product


_FOR_ALL_TESTS = contextlib.ExitStack()


def pytest_configure() -> None:
    """With ``pytest -p tests.uneven``, all tests compute in this way."""
    _FOR_ALL_TESTS.enter_context(uneven_products())


def pytest_unconfigure() -> None:
    """Leaves the operators as they were."""
    _FOR_ALL_TESTS.close()
