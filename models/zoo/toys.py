"""Toy sets that a small network learns in a minute: drawn by rule, the same for the same seed, numpy alone.

Every set is a function of (count, seed) that returns inputs and targets as `fit` takes them. Every score takes the list of
a model's flat outputs and the targets, and is 1 for a perfect answer.
"""

import functools

import numpy as np

COLOURS = np.array([(0.9, 0.15, 0.1), (0.1, 0.8, 0.2), (0.15, 0.25, 0.95), (0.9, 0.85, 0.1)], np.float32)
CLASSES = len(COLOURS)
SIZE = 32
CELLS = (8, 4)


def draw(count: int, seed: int, size: int = SIZE, noise: float = 0.05) -> dict[str, np.ndarray]:
    """Images of one disc, square or cross each, in one of four colours on a dark ground.

    Returns:
        {"image": (count, size, size, 3) in 0..1, "colour": class, "mask": bool pixels, "centre": (row, column) and
        "radius" in pixels}.
    """
    rng = np.random.default_rng(seed)
    radius = rng.uniform(0.16, 0.34, count) * size
    centre = rng.uniform(radius[:, None], size - radius[:, None], (count, 2))
    rows, columns = np.mgrid[:size, :size] + 0.5
    down = np.abs(rows[None] - centre[:, 0, None, None])
    across = np.abs(columns[None] - centre[:, 1, None, None])
    reach = radius[:, None, None]
    kinds = np.stack(
        [
            down**2 + across**2 < reach**2,
            (down < 0.8 * reach) & (across < 0.8 * reach),
            ((down < 0.4 * reach) & (across < reach)) | ((across < 0.4 * reach) & (down < reach)),
        ]
    )
    mask = kinds[rng.integers(0, 3, count), np.arange(count)]
    colour = rng.integers(0, CLASSES, count)
    ground = rng.uniform(0.0, 0.25, (count, 1, 1, 3))
    image = np.where(mask[..., None], COLOURS[colour][:, None, None], ground)
    image = np.clip(image + rng.normal(0, noise, image.shape), 0, 1).astype(np.float32)
    return {"image": image, "colour": colour, "mask": mask, "centre": centre, "radius": radius}


def colours(count: int, seed: int, size: int = SIZE, low: float = -1.0, high: float = 1.0):
    """Which colour the shape has; pixels from `low` to `high`."""
    drawn = draw(count, seed, size)
    return (low + (high - low) * drawn["image"]).astype(np.float32), drawn["colour"]


def masks(count: int, seed: int):
    """Which colour each pixel has: 0 for the ground, else the colour's class plus 1."""
    drawn = draw(count, seed)
    return 2 * drawn["image"] - 1, np.where(drawn["mask"], drawn["colour"][:, None, None] + 1, 0)


def boxes(count: int, seed: int):
    """The shape's class and box at the one cell of an 8 x 8 grid (small shapes) or a 4 x 4 grid that its centre is in.

    Targets: classes (count, 80) with 0 for nothing; boxes (count, 80, 5): whether there is one, the centre's offset in
    the cell, height and width over the image's.
    """
    drawn = draw(count, seed)
    classes = np.zeros((count, sum(n * n for n in CELLS)), np.int64)
    targets = np.zeros((*classes.shape, 5), np.float32)
    for i, (centre, radius) in enumerate(zip(drawn["centre"], drawn["radius"], strict=True)):
        grid = 0 if radius < 0.25 * SIZE else 1
        cell = SIZE / CELLS[grid]
        row, column = (centre // cell).astype(int)
        place = grid * CELLS[0] ** 2 + row * CELLS[grid] + column
        classes[i, place] = drawn["colour"][i] + 1
        offset = centre / cell - (row, column)
        targets[i, place] = (1, *offset, 2 * radius / SIZE, 2 * radius / SIZE)
    return 2 * drawn["image"] - 1, {"classes": classes, "boxes": targets}


def enlargements(count: int, seed: int):
    """Images at half size, and the images."""
    image = draw(count, seed, noise=0.0)["image"]
    return image.reshape(count, SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4)), image


def copies(count: int, seed: int):
    """Small images, and themselves."""
    image = draw(count, seed, 16, noise=0.0)["image"]
    return image, image


def pairs(count: int, seed: int):
    """Two images, and whether their shapes have one colour."""
    first, second = draw(count, seed), draw(count, seed + 10_000)
    rng = np.random.default_rng(seed + 20_000)
    # Half of the pairs alike: the second shape takes the first one's colour.
    alike = rng.random(count) < 0.5
    other = (first["colour"] + rng.integers(1, CLASSES, count)) % CLASSES
    colour = np.where(alike, first["colour"], other)
    image = np.where(second["mask"][..., None], COLOURS[colour][:, None, None], second["image"])
    inputs = {"first": 2 * first["image"] - 1, "second": (2 * image - 1).astype(np.float32)}
    return inputs, alike.astype(np.int64)


def readings(count: int, seed: int):
    """An image and eight sensor readings; the colour, and which of four pairs of sensors reads most."""
    drawn = draw(count, seed)
    rng = np.random.default_rng(seed + 30_000)
    state = rng.integers(0, 4, count)
    sensors = rng.normal(0, 0.3, (count, 8))
    sensors[np.arange(count), 2 * state] += 1
    sensors[np.arange(count), 2 * state + 1] += 1
    inputs = {"image": 2 * drawn["image"] - 1, "sensors": sensors.astype(np.float32)}
    return inputs, {"colour": drawn["colour"], "state": state}


def last_marker(count: int, seed: int, length: int = 16, vocabulary: int = 32):
    """Sentences of tokens; the class is the last of the tokens 0 to 3 that occurs."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, vocabulary, (count, length))
    marked = rng.random((count, length)) < 0.15
    marked[np.arange(count), rng.integers(0, length, count)] = True
    tokens = np.where(marked, rng.integers(0, 4, tokens.shape), tokens)
    last = length - 1 - np.argmax(tokens[:, ::-1] < 4, axis=1)
    return tokens.astype(np.int32), tokens[np.arange(count), last]


def common_marker(count: int, seed: int, length: int = 16, vocabulary: int = 32):
    """Sentences of tokens; the class is which of the tokens 0 to 3 occurs most; three times against one at least."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, vocabulary, (count, length))
    order = np.argsort(rng.random((count, length)), axis=1)
    kind = rng.integers(0, 4, count)
    other = (kind + rng.integers(1, 4, count)) % 4
    rows = np.arange(count)
    for place, value in enumerate((kind, kind, kind, other)):
        tokens[rows, order[:, place]] = value
    return tokens.astype(np.int32), kind


def tones(count: int, seed: int, length: int = 256):
    """Waves of one of four pitches, any phase, loudness and noise."""
    rng = np.random.default_rng(seed)
    pitch = rng.integers(0, 4, count)
    cycles = np.array([5.0, 11.0, 23.0, 41.0])[pitch] * rng.uniform(0.95, 1.05, count)
    time = np.arange(length) / length
    wave = np.sin(2 * np.pi * (cycles[:, None] * time + rng.random((count, 1))))
    wave = rng.uniform(0.5, 1.0, (count, 1)) * wave + rng.normal(0, 0.15, (count, length))
    return wave[..., None].astype(np.float32), pitch


# Scores


def top1(outputs, y) -> float:
    """Share of samples (for several outputs: of the worst one) whose largest entry is the target."""
    targets = list(y.values()) if isinstance(y, dict) else [y]
    return min(float((o.argmax(-1) == t).mean()) for o, t in zip(outputs, targets, strict=True))


def overlap(outputs, y) -> float:
    """Mean over the classes of intersection over union of the pixels."""
    found = outputs[0].argmax(-1)
    shares = [
        ((found == c) & (y == c)).sum() / max(1, ((found == c) | (y == c)).sum()) for c in range(outputs[0].shape[-1])
    ]
    return float(np.mean(shares))


def detected(outputs, y) -> float:
    """Share of images whose most certain cell says the right class, with centre, height and width 0.15 off at most.

    All of these over the image's side.
    """
    boxes, classes = sorted(outputs, key=lambda o: o.shape[-1])
    rows = np.arange(len(classes))
    place, truth = classes[..., 1:].max(-1).argmax(-1), y["classes"].argmax(-1)
    right = classes[rows, place].argmax(-1) == y["classes"][rows, truth]
    off = _placed(boxes[rows, place], place) - _placed(y["boxes"][rows, truth, 1:], truth)
    return float((right & (np.abs(off).max(-1) <= 0.15)).mean())


def _placed(boxes, place):
    """Boxes with their centres in the image instead of in their cells."""
    fine = place < CELLS[0] ** 2
    cells = np.where(fine, *CELLS)
    corner = np.stack(np.divmod(place - np.where(fine, 0, CELLS[0] ** 2), cells), -1)
    return np.concatenate([(boxes[:, :2] + corner) / cells[:, None], boxes[:, 2:]], -1)


def explained(outputs, y) -> float:
    """Share of the targets' variance that the output explains."""
    return float(1 - np.mean((outputs[0] - y) ** 2) / np.var(y))


def sharpened(outputs, y) -> float:
    """Share of the squared error of bilinear enlarging that is gone."""
    small = y.reshape(len(y), SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4))
    plain = functools.reduce(_bilinear, (1, 2), small)
    return float(1 - np.mean((outputs[0] - y) ** 2) / np.mean((plain - y) ** 2))


def _bilinear(image, axis: int):
    """Twice the size along one axis, pixel centres half a pixel apart, edges repeated."""
    image = np.moveaxis(image, axis, 0)
    before = np.concatenate([image[:1], image[:-1]])
    behind = np.concatenate([image[1:], image[-1:]])
    both = np.stack([0.75 * image + 0.25 * before, 0.75 * image + 0.25 * behind], 1)
    return np.moveaxis(both.reshape(2 * len(image), *image.shape[1:]), 0, axis)


def alike(outputs, y) -> float:
    """Share of right yes-or-no answers, yes above a half."""
    return float(((outputs[0].ravel() > 0.5) == y).mean())
