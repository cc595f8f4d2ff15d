"""Draws cats and dogs before cluttered backgrounds, with their trimaps.

An animal is a list of polygons in a frame of its own (x to the right, y down, about two units tall), which is turned,
mirrored, scaled and moved into the picture. Everything is drawn at twice the size and reduced, which softens the edges.
"""

import colorsys
import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PET, BACKGROUND, BORDER = 1, 2, 3  # the trimap's coding in Oxford-IIIT Pet
SPECIES = ("Cat", "Dog")
OVERSAMPLING = 2

Color = tuple[float, float, float]
FURS: tuple[Color, ...] = (
    (52, 46, 44), (96, 68, 46), (148, 96, 52), (196, 124, 62), (212, 168, 112), (228, 212, 186), (240, 238, 232),
    (128, 124, 122), (88, 92, 100), (176, 150, 126),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One animal.

    Attributes:
      image: uint8 [H, W, 3].
      trimap: uint8 [H, W] of PET, BACKGROUND, BORDER.
      silhouette: bool [H, W], True on the animal.
      species: index of SPECIES.
    """

    image: np.ndarray
    trimap: np.ndarray
    silhouette: np.ndarray
    species: int


@dataclasses.dataclass
class Part:
    """A polygon [N, 2] in the animal's frame and its colour; one that is not `solid` lies outside the silhouette."""

    outline: np.ndarray
    color: Color
    solid: bool = True


def draw(rng: np.random.Generator) -> Drawing:
    """Draws one animal; the generator decides everything."""
    height, width = int(rng.integers(150, 260)), int(rng.integers(150, 260))
    if height == width:
        width += 16
    species = int(rng.integers(len(SPECIES)))
    animal = _Animal(rng, species)
    place = _Placement(rng, height, width, animal.parts)
    scene = _background(rng, height, width)
    image, mask = _paint(rng, scene, animal, place)
    border = max(2, round(min(height, width) * rng.uniform(0.021, 0.027)))
    return Drawing(image, trimap(mask, border), mask, species)


def trimap(mask: np.ndarray, radius: int) -> np.ndarray:
    """Marks a band of pixels on both sides of an outline as border.

    Args:
      mask: bool [H, W], True on the animal.
      radius: width of the band on either side, in pixels.

    Returns:
      uint8 [H, W] of PET, BACKGROUND, BORDER.
    """
    outer = _grow(mask, radius)
    inner = ~_grow(~mask, radius)
    return np.where(inner, PET, np.where(outer, BORDER, BACKGROUND)).astype(np.uint8)


def _grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilates by an octagon: squares and crosses in turn."""
    for i in range(radius):
        padded = np.pad(mask, 1)
        grown = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        if i % 2:
            grown |= padded[:-2, :-2] | padded[:-2, 2:] | padded[2:, :-2] | padded[2:, 2:]
        mask = grown
    return mask


class _Animal:
    """A cat or a dog in one of four poses.

    Attributes:
      parts: polygons, back to front.
      marks: polygons that show only on the fur.
      mark_color: colour of the marks.
    """

    def __init__(self, rng: np.random.Generator, species: int):
        self._rng, self._cat = rng, species == 0
        self.fur: Color = _shade(FURS[rng.integers(len(FURS))], rng.uniform(0.85, 1.12))
        other = FURS[rng.integers(len(FURS))]
        self.mark_color: Color = other if rng.random() < 0.6 else _shade(self.fur, 0.6)
        self.parts: list[Part] = []
        self.marks: list[np.ndarray] = []
        self._stout = rng.uniform(0.85, 1.2)
        pose = rng.choice(["standing", "sitting", "lying", "portrait"], p=[0.3, 0.3, 0.2, 0.2])
        getattr(self, f"_{pose}")()
        self._draw_marks()

    def _standing(self) -> None:
        jitter, stout = self._jitter, self._stout
        self._tail((-0.58, -0.1), (-0.95, jitter(-0.2, 0.3)), (-1.0, jitter(-0.75, 0.3)))
        for x, dark in ((-0.38, 0.8), (0.36, 0.8), (-0.5, 1.0), (0.5, 1.0)):
            self._limb([(x, 0.1), (jitter(x, 0.08), 0.45), (jitter(x, 0.1), 0.82)], (0.17, 0.1, 0.085), dark)
        self._ellipse(0, 0, 0.66, 0.29 * stout, jitter(0, 0.06))
        self._limb([(0.45, -0.08), (0.6, -0.3), (0.72, -0.42)], (0.24, 0.2, 0.18))
        self._head(0.78, jitter(-0.5, 0.1), 0.29)

    def _sitting(self) -> None:
        jitter, stout = self._jitter, self._stout
        self._tail((0.28, 0.7), (0.75, 0.8), (0.85, jitter(0.4, 0.25)))
        for side in (-1, 1):
            self._ellipse(side * 0.3 * stout, 0.6, 0.24, 0.27, 0.0, 0.9)
        self._ellipse(0, 0.22, 0.36 * stout, 0.6, 0)
        for side in (-1, 1):
            self._limb([(side * 0.14, 0.15), (side * 0.16, 0.5), (side * 0.17, 0.84)], (0.13, 0.1, 0.1), 1.05)
        self._head(jitter(0, 0.1), -0.5, 0.34)

    def _lying(self) -> None:
        jitter, stout = self._jitter, self._stout
        self._tail((-0.7, 0.3), (-1.0, 0.45), (-1.1, jitter(0.2, 0.25)))
        self._ellipse(0, 0.25, 0.78, 0.29 * stout, jitter(0, 0.05))
        self._ellipse(-0.48, 0.32, 0.3, 0.25, 0.2, 0.9)
        self._limb([(0.4, 0.4), (0.75, 0.5), (1.05, 0.5)], (0.13, 0.1, 0.1), 1.05)
        self._limb([(-0.35, 0.48), (-0.1, 0.54), (0.12, 0.53)], (0.12, 0.1, 0.09), 1.0)
        self._head(0.66, jitter(-0.1, 0.1), 0.31)

    def _portrait(self) -> None:
        self._ellipse(self._jitter(0, 0.15), 0.95, 0.78 * self._stout, 0.62, 0, 0.9)
        self._ellipse(0, 0.5, 0.42, 0.5, 0)
        self._head(0, -0.15, 0.62)

    def _head(self, x: float, y: float, r: float) -> None:
        rng, dark = self._rng, _shade(self.fur, 0.72)
        pointed = self._cat or rng.random() < 0.35
        for side in (-1, 1):
            if pointed:
                tip = (x + side * r * rng.uniform(0.7, 0.95), y - r * rng.uniform(1.35, 1.6))
                base = [(x + side * r * 0.25, y - r * 0.8), tip, (x + side * r * 0.95, y - r * 0.2)]
                self.parts.append(Part(np.array(base), self.fur))
                inner = np.array(base) * 0.6 + np.mean(base, axis=0) * 0.4
                self.parts.append(Part(inner, (198, 150, 140) if self._cat else dark))
        self._ellipse(x, y, r * (1.02 if self._cat else 0.9), r * (0.88 if self._cat else 1.0), 0, 1.06)
        if not pointed:
            for side in (-1, 1):
                self._ellipse(x + side * r * 0.92, y + r * 0.12, r * 0.27, r * 0.72, -side * 0.25, 0.75)
        muzzle = _shade(self.fur, 1.15) if rng.random() < 0.6 else self.mark_color
        size = 0.4 if self._cat else 0.55
        self._ellipse(x, y + r * 0.42, r * size, r * size * 0.75, 0, color=muzzle)
        self._face(x, y, r)

    def _face(self, x: float, y: float, r: float) -> None:
        rng = self._rng
        iris: Color = ((150, 180, 60), (210, 170, 50), (110, 160, 190))[rng.integers(3)] if self._cat else (74, 46, 28)
        for side in (-1, 1):
            center = (x + side * r * 0.38, y - r * 0.08)
            self._ellipse(*center, r * 0.16, r * 0.15, 0, color=iris)
            self._ellipse(*center, r * (0.06 if self._cat else 0.1), r * 0.13, 0, color=(14, 12, 12))
            self._ellipse(center[0] + r * 0.04, center[1] - r * 0.05, r * 0.035, r * 0.035, 0, color=(245, 245, 245))
        nose: Color = (196, 116, 116) if self._cat else (26, 22, 22)
        width = 0.1 if self._cat else 0.19
        self._ellipse(x, y + r * 0.26, r * width, r * width * 0.7, 0, color=nose)
        self._limb([(x, y + r * 0.3), (x, y + r * 0.5), (x, y + r * 0.56)], (0.014, 0.014, 0.014), color=(40, 28, 28))
        if not self._cat and rng.random() < 0.4:
            self._ellipse(x, y + r * 0.78, r * 0.14, r * 0.24, 0, color=(214, 96, 104))
        if self._cat:
            for side in (-1, 1):
                for rise in (-0.12, 0.02, 0.16):
                    start = (x + side * r * 0.3, y + r * 0.42)
                    end = (x + side * r * 1.25, y + r * (0.4 + rise * 2))
                    hair = _strip([start, ((start[0] + end[0]) / 2, start[1] + r * rise), end], (0.006,) * 3)
                    self.parts.append(Part(hair, (236, 236, 230), solid=False))

    def _draw_marks(self) -> None:
        """Stripes, spots, or nothing."""
        rng = self._rng
        kind = rng.choice(["stripes", "spots", "plain"], p=[0.35, 0.3, 0.35])
        if kind == "stripes":
            for x in np.arange(-1.1, 1.2, rng.uniform(0.13, 0.22)).tolist():
                bend, y = rng.normal(0, 0.12, 2), rng.uniform(-1.1, -0.5)
                points = [(x, y), (x + bend[0], y + 0.5), (x + bend[1], y + rng.uniform(0.7, 1.5))]
                self.marks.append(_strip(points, (0.02, rng.uniform(0.025, 0.05), 0.01)))
        elif kind == "spots":
            for _ in range(rng.integers(4, 12)):
                x, y = rng.uniform(-1, 1), rng.uniform(-0.8, 0.8)
                self.marks.append(_oval(x, y, rng.uniform(0.08, 0.3), rng.uniform(0.08, 0.26), rng.uniform(0, 3)))

    def _jitter(self, value: float, spread: float) -> float:
        return value + self._rng.uniform(-spread, spread)

    def _ellipse(
        self, x: float, y: float, rx: float, ry: float, angle: float, shade: float = 1.0, color: Color | None = None
    ) -> None:
        self.parts.append(Part(_oval(x, y, rx, ry, angle), color or _shade(self.fur, shade)))

    def _limb(
        self,
        points: Sequence[tuple[float, float]],
        widths: Sequence[float],
        shade: float = 1.0,
        color: Color | None = None,
    ) -> None:
        color = color or _shade(self.fur, shade)
        self.parts.append(Part(_strip(points, widths), color))
        self.parts.append(Part(_oval(*points[-1], widths[-1], widths[-1] * 0.85, 0), color))

    def _tail(self, start: tuple[float, float], middle: tuple[float, float], end: tuple[float, float]) -> None:
        thick = self._rng.uniform(0.05, 0.12)
        self._limb([start, middle, end], (thick, thick, thick * 0.6), 0.95)


class _Placement:
    """Maps an animal's frame into a picture: turned, mirrored, scaled and moved."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, parts: Sequence[Part]):
        points = np.concatenate([part.outline for part in parts if part.solid])
        angle, mirror = rng.normal(0, 0.12), rng.choice([-1, 1])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [mirror, 1]
        low, high = (points @ turn.T).min(0), (points @ turn.T).max(0)
        fill = rng.uniform(0.72, 1.2)
        scale = fill * min(width / (high[0] - low[0]), height / (high[1] - low[1]))
        room = np.array([width, height]) - scale * (high - low)
        corner = room * rng.uniform(0.1, 0.9, 2)
        self._matrix, self._shift = turn * scale, corner - scale * low

    def __call__(self, polygon: np.ndarray) -> list[tuple[float, float]]:
        """A polygon in oversampled pixels, as ImageDraw wants it."""
        points = (polygon @ self._matrix.T + self._shift) * OVERSAMPLING
        return [tuple(point) for point in points.tolist()]


def _paint(
    rng: np.random.Generator, scene: np.ndarray, animal: _Animal, place: _Placement
) -> tuple[np.ndarray, np.ndarray]:
    """Draws an animal over a scene, [3, H, W]; returns the image, uint8 [H, W, 3], and the silhouette, bool [H, W]."""
    _, height, width = scene.shape
    size = (width * OVERSAMPLING, height * OVERSAMPLING)
    flat, silhouette = Image.new("RGB", size), Image.new("L", size)
    marks, hairs = Image.new("L", size), Image.new("L", size)
    for part in animal.parts:
        outline = place(part.outline)
        ImageDraw.Draw(flat).polygon(outline, fill=tuple(int(min(255, c)) for c in part.color))
        ImageDraw.Draw(silhouette if part.solid else hairs).polygon(outline, fill=255)
    for mark in animal.marks:
        ImageDraw.Draw(marks).polygon(place(mark), fill=255)
    color, cover = _reduced(flat), _reduced(silhouette) / 255
    fur, mark_color = (np.array(c, np.float32)[:, None, None] for c in (animal.fur, animal.mark_color))
    is_fur = (np.abs(color - fur) < 90).all(0)  # eyes and noses keep their colour
    color += _reduced(marks) / 340 * is_fur * (mark_color - color)
    coat = 1 + 0.1 * _noise(rng, height, width, 2) + 0.08 * _noise(rng, height, width, 7)
    light = 1 + 0.16 * _noise(rng, height, width, 70) - np.linspace(-0.11, 0.22, height, dtype=np.float32)[:, None]
    shadow = _pixels(silhouette.reduce(OVERSAMPLING).filter(ImageFilter.BoxBlur(9)))
    scene = scene * (1 - np.roll(shadow, 6, axis=0) / 730)
    opacity = np.maximum(cover, _reduced(hairs) / 320)
    image = scene * (1 - opacity) + color * (coat * light * opacity)
    image = (image - 128) * rng.uniform(0.85, 1.1) + 128 + rng.uniform(-14, 14)
    image += 3 * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0), cover > 0.5


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A scene without an animal: float32 [3, H, W] in [0, 255]."""
    picture = Image.new("RGB", (width, height), _random_color(rng))
    draw = ImageDraw.Draw(picture)
    horizon = int(height * rng.uniform(0.25, 0.8))
    outdoors = rng.random() < 0.5
    ground = (rng.uniform(60, 120), rng.uniform(110, 160), rng.uniform(40, 80)) if outdoors else _random_color(rng)
    draw.rectangle((0, horizon, width, height), fill=tuple(int(c) for c in ground))
    for _ in range(rng.integers(0, 3)):
        _draw_stripes(rng, draw, height, width)
    for _ in range(rng.integers(6, 22)):
        _draw_thing(rng, draw, height, width)
    blur = rng.uniform(0, 2.5)
    scene = _pixels(picture.filter(ImageFilter.GaussianBlur(blur)))
    grain = 1 + 0.08 * _noise(rng, height, width, rng.uniform(2, 6)) + 0.14 * _noise(rng, height, width, 40)
    return scene * grain


def _draw_stripes(rng: np.random.Generator, draw: ImageDraw.ImageDraw, height: int, width: int) -> None:
    """A fence, a blanket, tiles: parallel bars over part of the picture."""
    color, gap = _random_color(rng), rng.uniform(10, 34)
    top, bottom = sorted(rng.uniform(0, height, 2).tolist())
    for x in np.arange(0, width, gap).tolist():
        if rng.random() < 0.9:
            draw.rectangle((x, top, x + gap * rng.uniform(0.25, 0.6), bottom), fill=color)


def _draw_thing(rng: np.random.Generator, draw: ImageDraw.ImageDraw, height: int, width: int) -> None:
    """A ball, a box, a leaf, a cushion."""
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    rx, ry = rng.uniform(0.03, 0.17, 2) * min(height, width)
    color = _random_color(rng)
    kind = rng.integers(4)
    if kind == 0:
        draw.ellipse((x - rx, y - rx, x + rx, y + rx), fill=color)
    elif kind == 1:
        draw.rectangle((x - rx, y - ry * 2, x + rx, y + ry * 2), fill=color)
    else:
        leaf = _oval(x, y, rx * 1.6, ry * 0.8, rng.uniform(0, np.pi))
        outline = leaf if kind == 2 else rng.normal((x, y), rx, (3, 2))
        draw.polygon([tuple(point) for point in outline.tolist()], fill=color)


def _random_color(rng: np.random.Generator) -> tuple[int, int, int]:
    """Any colour, but green to violet more often: the warm ones are those of animals."""
    hue = rng.uniform(0.22, 0.92) if rng.random() < 0.8 else rng.random()
    color = colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.8), rng.uniform(0.2, 0.95))
    return tuple(int(255 * c) for c in color)  # type: ignore[return-value]


def _shade(color: Color, factor: float) -> Color:
    return tuple(min(255.0, c * factor) for c in color)  # type: ignore[return-value]


def _oval(x: float, y: float, rx: float, ry: float, angle: float) -> np.ndarray:
    """An ellipse as a polygon [36, 2]."""
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    u, v = rx * np.cos(turn), ry * np.sin(turn)
    return np.stack([x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle)], 1)


def _strip(points: Sequence[tuple[float, float]], widths: Sequence[float]) -> np.ndarray:
    """A band along a quadratic Bezier curve through three control points, with three half-widths, as a polygon."""
    t = np.linspace(0, 1, 14)[:, None]
    a, b, c = (np.array(point) for point in points)
    curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    along = np.gradient(curve, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
    half = np.interp(t[:, 0], [0, 0.5, 1], widths)[:, None]
    return np.concatenate([curve + normal * half, (curve - normal * half)[::-1]])


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise in about [-1, 1] with features of `cell` pixels, float32 [H, W]."""
    coarse = rng.uniform(-1, 1, (int(height / cell) + 2, int(width / cell) + 2)).astype(np.float32)
    return _pixels(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _reduced(picture: Image.Image) -> np.ndarray:
    return _pixels(picture.reduce(OVERSAMPLING))


def _pixels(picture: Image.Image) -> np.ndarray:
    """float32 [H, W], or [3, H, W]: numpy is slow where the innermost axis is short."""
    pixels = np.asarray(picture, np.float32)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
