"""What an image model asks of the data set's input shape."""


def image(shape: tuple[int, ...], model: str, smallest: int = 1) -> tuple[int, int, int]:
    """`shape` as (channels, height, width).

    Parameters
    ----------
    shape : tuple of int
        The data set's input shape, without the batch.
    model : str
        The name for the message.
    smallest : int
        The least height and width, in pixels, at which no layer's output is empty.

    Raises
    ------
    ValueError
        `shape` is not an image, or is smaller than `smallest` in height or width.
    """
    if len(shape) != 3:
        raise ValueError(f"{model} needs images (C, H, W), got shape {tuple(shape)}; use model=mlp")
    channels, height, width = shape
    if min(height, width) < smallest:
        raise ValueError(f"{model} needs images of at least {smallest} x {smallest} pixels, got {height} x {width}")
    return channels, height, width
