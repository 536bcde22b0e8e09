"""Blocks of a side of a matrix, and the error if they do not fit."""

from peftjax.core.sites import WeightSite


def check_divides(site: WeightSite, name: str, size: int, side: str, length: int) -> None:
    """Raises ValueError unless blocks of `size` fill a side of the site's matrix."""
    if length % size:
        near = [each for each in range(1, length + 1) if length % each == 0]
        best = min(near, key=lambda each: abs(each - size))
        raise ValueError(
            f'{name} {size} does not divide the {side} size {length} of {site.path!r} '
            f'{site.shape} {site.dtype}; write for example {name}={best}'
        )


def check_positive(**sizes: int) -> None:
    """Raises ValueError unless every size is a whole number of at least 1."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'{name} must be a whole number of at least 1, got {value!r}')
