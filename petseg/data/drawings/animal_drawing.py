"""Draws cats and dogs in front of cluttered backgrounds, with their trimaps.

Shapes are polygons of complex numbers, x + yj with y downwards. An animal is drawn in a frame of its own, about two
units tall, then turned, mirrored, scaled and moved into the image. It is painted at twice the size and reduced, which
smooths its edges.
"""

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PET, BACKGROUND, BORDER = 1, 2, 3  # the trimap's values in Oxford-IIIT Pet
SPECIES = ("Cat", "Dog")
OVERSAMPLING = 2

Color = tuple[int, int, int]
Shapes = list[tuple[np.ndarray, Color]]  # polygons and their colours, back to front
WHITE, BLACK, PINK = (238, 238, 232), (20, 16, 16), (204, 118, 118)
IRISES = ((150, 180, 60), (210, 170, 50), (110, 160, 190))
FURS = (
    (52, 46, 44), (96, 68, 46), (148, 96, 52), (196, 124, 62), (212, 168, 112), (228, 212, 186), (240, 238, 232),
    (128, 124, 122), (88, 92, 100), (176, 150, 126),
)  # fmt: skip
# Each pose: the head's centre and radius, and the parts of the body, back to front, the tail first. A part is an oval
# (centre, two radii, shade of the fur) or a limb (three points of a curve, half-widths at its ends, shade).
POSES: tuple[Any, ...] = (
    (0.78 - 0.5j, 0.29, [  # standing
        ((-0.58 - 0.1j, -0.95 - 0.2j, -1 - 0.75j), (0.09, 0.06), 0.95),
        *(((x + 0.1j, x + 0.45j, x + 0.82j), (0.15, 0.08), 0.8) for x in (-0.38, 0.36)),
        *(((x + 0.1j, x + 0.45j, x + 0.82j), (0.15, 0.08), 1) for x in (-0.5, 0.5)),
        (0j, (0.66, 0.29), 1), ((0.45 - 0.08j, 0.6 - 0.3j, 0.72 - 0.42j), (0.24, 0.18), 1)]),
    (-0.5j, 0.34, [  # sitting
        ((0.28 + 0.7j, 0.75 + 0.8j, 0.85 + 0.4j), (0.09, 0.06), 0.95),
        *((x + 0.6j, (0.24, 0.27), 0.9) for x in (-0.3, 0.3)), (0.22j, (0.36, 0.6), 1),
        *(((x + 0.15j, 1.1 * x + 0.5j, 1.2 * x + 0.84j), (0.13, 0.1), 1.05) for x in (-0.14, 0.14))]),
    (0.66 - 0.1j, 0.31, [  # lying
        ((-0.7 + 0.3j, -1 + 0.45j, -1.1 + 0.2j), (0.09, 0.06), 0.95),
        (0.25j, (0.78, 0.29), 1), (-0.48 + 0.32j, (0.3, 0.25), 0.9),
        ((0.4 + 0.4j, 0.75 + 0.5j, 1.05 + 0.5j), (0.13, 0.1), 1.05),
        ((-0.35 + 0.48j, -0.1 + 0.54j, 0.12 + 0.53j), (0.12, 0.09), 1)]),
    (-0.15j, 0.62, [(0.95j, (0.78, 0.62), 0.9), (0.5j, (0.42, 0.5), 1)]),  # portrait
)  # fmt: skip


class Drawing(NamedTuple):
    """One animal: index into SPECIES, uint8 [H, W, 3], uint8 [H, W] of PET, BACKGROUND, BORDER, and bool [H, W]."""

    species: int
    image: np.ndarray
    trimap: np.ndarray
    silhouette: np.ndarray


def draw(rng: np.random.Generator) -> Drawing:
    """Draws one animal; the generator decides everything."""
    height, width = rng.choice(np.arange(150, 260), 2, replace=False).tolist()
    species = int(rng.integers(len(SPECIES)))
    picture = _animal(rng, np.array([width, height]) * OVERSAMPLING, is_cat=species == 0).reduce(OVERSAMPLING)
    silhouette = picture.getchannel("A")
    animal, opacity = np.split(_pixels(picture), [3])
    light = 1 + 0.16 * _noise(rng, height, width, 70) - np.linspace(-0.11, 0.22, height, dtype=np.float32)[:, None]
    fur = 1 + 0.04 * _noise(rng, height, width, 2) + 0.11 * _noise(rng, height, width, rng.uniform(2, 7))
    shadow = _pixels(silhouette.filter(ImageFilter.BoxBlur(9)))
    scene = _background(rng, height, width) * (1 - np.roll(shadow, 6, axis=1) / 730)
    image = scene + (animal * (fur * light) - scene) * (opacity / 255)
    image = (image - 128) * rng.uniform(0.85, 1.1) + 128 + rng.uniform(-14, 14)
    image += 3 * rng.standard_normal(image.shape, np.float32)
    flip = rng.choice([-1, 1])
    mask = np.asarray(silhouette)[:, ::flip] > 127
    border = max(2, round(min(height, width) * rng.uniform(0.021, 0.027)))
    pixels = image.clip(0, 255).astype(np.uint8)[..., ::flip].transpose(1, 2, 0)
    return Drawing(species, pixels, trimap(mask, border), mask)


def trimap(mask: np.ndarray, radius: int) -> np.ndarray:
    """Marks a band of about `radius` pixels on both sides of the outline of a mask, bool [H, W], as border."""
    blurred = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.GaussianBlur(0.617 * radius)))
    inside, outside = mask & (blurred > 0.95 * 255), ~mask & (blurred < 0.05 * 255)
    return np.select([inside, outside], [PET, BACKGROUND], BORDER).astype(np.uint8)


def _animal(rng: np.random.Generator, size: np.ndarray, *, is_cat: bool) -> Image.Image:
    """An animal on a transparent RGBA image of a size (width, height)."""
    fur, other = (_shade(FURS[i], rng.uniform(0.85, 1.12)) for i in rng.integers(len(FURS), size=2))
    mark = other if rng.random() < 0.6 else _shade(fur, 0.6)
    center, radius, parts = POSES[rng.integers(len(POSES))]
    coat: Shapes = []
    for i, (points, widths, shade) in enumerate(parts):
        moved = points + _offsets(rng, np.size(points)) * (0.07 if i else 0.2)
        make = _limb if len(moved) > 1 else _oval
        coat.append((make(moved, *(widths * rng.uniform(0.85, 1.2, 2))), _shade(fur, shade)))
    at = center + 0.08 * _offsets(rng, 1), radius * np.exp(1j * rng.normal(0, 0.1))
    head, face = (_moved(shapes, *at) for shapes in _head(rng, fur, mark, is_cat=is_cat))
    place = _placement(rng, size, np.concatenate([polygon for polygon, _ in coat + head]))
    plain = _drawn(Image.new("RGBA", tuple(size.tolist())), _moved(coat + head, *place))
    marked = Image.blend(plain, _drawn(plain.copy(), _moved(_marks(rng, mark), *place)), 0.75)
    return _drawn(Image.composite(marked, plain, plain.getchannel("A")), _moved(face, *place))


def _placement(rng: np.random.Generator, size: np.ndarray, points: np.ndarray) -> tuple[complex, complex]:
    """Shift and factor that turn points and fit them into an image, the largest ones beyond its edges."""
    turn = np.exp(1j * rng.normal(0, 0.12))
    turned = np.stack([(points * turn).real, (points * turn).imag])
    low, extent = turned.min(axis=1), np.ptp(turned, axis=1)
    scale = rng.uniform(0.72, 1.2) * min(size / extent)
    return complex(*((size - scale * extent) * rng.uniform(0.1, 0.9, 2) - scale * low)), scale * turn


def _head(rng: np.random.Generator, fur: Color, mark: Color, *, is_cat: bool) -> tuple[Shapes, Shapes]:
    """Head with ears, and face, in a frame in which the head is about a unit circle."""
    pointed, muzzle = is_cat or rng.random() < 0.35, 0.4 if is_cat else 0.55
    head: Shapes = []
    face: Shapes = [(_oval(0.42j, muzzle, muzzle * 0.75), _shade(fur, 1.15) if rng.random() < 0.6 else mark)]
    iris = IRISES[rng.integers(len(IRISES))] if is_cat else (74, 46, 28)
    for side in (-1, 1):
        if pointed:
            tip = side * rng.uniform(0.7, 0.95) - 1j * rng.uniform(1.35, 1.6)
            ear = np.array([side * 0.25 - 0.8j, tip, side * 0.95 - 0.2j])
            head += [(ear, fur), (0.6 * ear + 0.4 * ear.mean(), PINK if is_cat else _shade(fur, 0.72))]
        else:
            face.append((_oval(side * 0.92 + 0.12j, 0.27, 0.72, angle=-side * 0.25), _shade(fur, 0.75)))
        eye = side * 0.38 - 0.08j
        pupil, glint = _oval(eye, 0.06 if is_cat else 0.1, 0.13), _oval(eye + 0.04 - 0.05j, 0.035, 0.035)
        face += [(_oval(eye, 0.16, 0.15), iris), (pupil, BLACK), (glint, WHITE)]
        for rise in (-0.12j, 0.02j, 0.16j) if is_cat else ():  # whiskers
            hair = side * 0.3 + 0.42j, side * 0.7 + 0.4j + rise, side * 1.1 + 0.4j + 1.5 * rise
            face.append((_limb(hair, 0.012, 0.012), WHITE))
    head.append((_oval(0, 1.02, 0.88) if is_cat else _oval(0, 0.9, 1), _shade(fur, 1.06)))
    face.append((_oval(0.43j, 0.022, 0.14), BLACK))
    face.append((_oval(0.26j, 0.1, 0.07), PINK) if is_cat else (_oval(0.26j, 0.19, 0.13), BLACK))
    if not is_cat and rng.random() < 0.4:
        face.append((_oval(0.78j, 0.14, 0.24), PINK))
    return head, face


def _marks(rng: np.random.Generator, color: Color) -> Shapes:
    """Stripes, spots, or nothing."""
    kind = rng.integers(3)
    if kind == 0:
        xs = np.arange(-1.1, 1.2, rng.uniform(0.13, 0.22))
        stripes = [x + 0.15 * _offsets(rng, 3) + [-0.8j, 0, 0.8j] for x in xs]
        return [(_limb(points, *rng.uniform(0.01, 0.05, 2)), color) for points in stripes]
    spots = _offsets(rng, int(rng.integers(4, 12)) if kind == 1 else 0)
    return [(_oval(spot, *rng.uniform(0.08, 0.3, 2), angle=rng.uniform(0, 3)), color) for spot in spots]


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A scene without an animal, float32 [3, H, W] in [0, 255]: ground, fences and things."""
    picture = Image.new("RGB", (width, height), _random_color(rng))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, int(height * rng.uniform(0.25, 0.8)), width, height), fill=_random_color(rng))
    for _ in range(rng.integers(3)):  # fences
        color, gap, (top, bottom) = _random_color(rng), rng.uniform(10, 34), np.sort(rng.uniform(0, height, 2))
        for x in np.arange(0, width, gap):
            pen.rectangle((x, top, x + gap * rng.uniform(0.25, 0.6), bottom), fill=color)
    things: Shapes = []
    for _ in range(rng.integers(6, 22)):
        center, radii = complex(*rng.uniform(0, (width, height))), rng.uniform(0.03, 0.19, 2) * min(height, width)
        corners = rng.choice([3, 4, 36, 36])
        things.append((_oval(center, *radii, angle=rng.uniform(0, np.pi), corners=corners), _random_color(rng)))
    scene = _pixels(_drawn(picture, things).filter(ImageFilter.GaussianBlur(rng.uniform(0, 2.5))))
    return scene * (1 + 0.08 * _noise(rng, height, width, rng.uniform(2, 6)) + 0.14 * _noise(rng, height, width, 40))


def _random_color(rng: np.random.Generator) -> Color:
    """Any colour, but green to violet more often: the warm ones are those of animals."""
    hue = rng.uniform(0.22, 0.92) if rng.random() < 0.8 else rng.random()
    return _shade(colorsys.hsv_to_rgb(hue, rng.uniform(0.133, 0.8), rng.uniform(0.2, 0.95)), 255)


def _shade(color: Sequence[float], factor: float) -> Color:
    return tuple(min(255, int(channel * factor)) for channel in color)  # type: ignore[return-value]


def _oval(center: Any, *radii: float, angle: float = 0.0, corners: int = 36) -> np.ndarray:
    """An ellipse as a polygon; with few corners a triangle or a box."""
    turn = np.arange(corners) * (2 * np.pi / corners)
    return center + (radii[0] * np.cos(turn) + 1j * radii[1] * np.sin(turn)) * np.exp(1j * angle)


def _limb(points: Any, first: float, last: float) -> np.ndarray:
    """A band along a quadratic Bezier curve with three control points, between two half-widths; its end is round."""
    t = np.linspace(0, 1, 14)
    curve = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1) @ points
    along = np.gradient(curve)
    side = 1j * along / (np.abs(along) + 1e-9) * np.linspace(first, last, 14)
    cap = curve[-1] + side[-1] * np.exp(-1j * np.linspace(0, np.pi, 12))
    return np.concatenate([curve + side, cap, (curve - side)[::-1]])


def _offsets(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random points in the square from -1-1j to 1+1j."""
    return rng.uniform(-1, 1, (count, 2)) @ [1, 1j]


def _moved(shapes: Shapes, shift: complex, factor: complex) -> Shapes:
    return [(shift + factor * polygon, color) for polygon, color in shapes]


def _drawn(picture: Image.Image, shapes: Shapes) -> Image.Image:
    """The picture, with shapes drawn on it."""
    pen = ImageDraw.Draw(picture)
    for polygon, color in shapes:
        pen.polygon(polygon.astype(complex).view(float).tolist(), fill=color)
    return picture


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise in about [-1, 1] with features of `cell` pixels, float32 [H, W]."""
    coarse = rng.uniform(-1, 1, (int(height / cell) + 2, int(width / cell) + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _pixels(picture: Image.Image) -> np.ndarray:
    """float32 [channels, H, W]: numpy is slow where the innermost axis is short."""
    return np.stack([np.asarray(band) for band in picture.split()], dtype=np.float32)
