"""Compiled rasteriser: triangles with textures, vertex colours and transparency to linear light,
without a graphics driver.

How: a depth buffer over sample points finds the opaque triangle that each sample sees; those are shaded once;
transparent triangles are then blended over them from back to front. Colours are linear and premultiplied by alpha until
the samples of a pixel are averaged and encoded, so edges have no fringe and textures keep their brightness. Sequential,
hence the same bytes everywhere. Textures are sampled bilinearly from the mip level that fits a triangle. An edge shared
by two triangles belongs to one of them.

Shapes: V vertices, F faces, M materials, S samples per side. Screen points are (x right, y down, 1 / distance) in
samples.
Source: perspective-correct interpolation and the top-left rule as in any rasteriser; glTF 2.0, 3.9.4 (alpha modes).
"""

import math

import numpy as np
from numba import njit

from g3pt.geometry.scene import BLEND, CLAMP, MASK, MIRROR, OPAQUE, Scene

_WHOLE = 254.5 / 255  # alpha from which a texel of a blended material hides what is behind it


@njit(cache=True, nogil=True)
def project(vertices: np.ndarray, world_to_camera: np.ndarray, focal: float, half: float) -> np.ndarray:
    """Screen points (V, 3) float64 of world points; 1 / distance is 0 behind the camera."""
    screen = np.zeros((len(vertices), 3))
    for v in range(len(vertices)):
        x, y, z = vertices[v]
        m = world_to_camera
        depth = -(m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3])
        if depth <= 1e-9:
            continue
        screen[v, 0] = half + focal * (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth
        screen[v, 1] = half - focal * (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth
        screen[v, 2] = 1.0 / depth
    return screen


@njit(cache=True, nogil=True)
def _wrapped(index: int, size: int, mode: int) -> int:
    if mode == CLAMP:
        return min(max(index, 0), size - 1)
    if mode == MIRROR:
        index = index % (2 * size)
        return index if index < size else 2 * size - 1 - index
    return index % size


@njit(cache=True, nogil=True)
def _texel(scene: Scene, material: int, level: int, u: float, v: float) -> tuple[float, float, float, float]:
    """Linear colour and alpha of a texture at (u, v), bilinear; colours are weighted by alpha."""
    first, width, height = scene.level[scene.levels[material, 0] + level]
    x, y = u * width - 0.5, v * height - 0.5
    left, top = math.floor(x), math.floor(y)
    right_share, bottom_share = x - left, y - top
    r = g = b = alpha = 0.0
    for row in range(2):
        ty = _wrapped(int(top) + row, height, scene.wrap[material, 1])
        for column in range(2):
            tx = _wrapped(int(left) + column, width, scene.wrap[material, 0])
            weight = (right_share if column else 1.0 - right_share) * (bottom_share if row else 1.0 - bottom_share)
            texel = scene.texels[first + ty * width + tx]
            weight *= texel[3] / 255.0
            r += weight * scene.linear[texel[0]]
            g += weight * scene.linear[texel[1]]
            b += weight * scene.linear[texel[2]]
            alpha += weight
    if alpha <= 0.0:
        return 0.0, 0.0, 0.0, 0.0
    return r / alpha, g / alpha, b / alpha, alpha


@njit(cache=True, nogil=True)
def _albedo(scene: Scene, f: int, level: int, p: float, q: float, s: float) -> tuple[float, float, float, float]:
    """Linear colour and alpha of face f at barycentric (p, q, s): vertex colour times texture."""
    i, j, k = scene.faces[f]
    c = scene.colours
    r = p * c[i, 0] + q * c[j, 0] + s * c[k, 0]
    g = p * c[i, 1] + q * c[j, 1] + s * c[k, 1]
    b = p * c[i, 2] + q * c[j, 2] + s * c[k, 2]
    alpha = p * c[i, 3] + q * c[j, 3] + s * c[k, 3]
    material = scene.material[f]
    if scene.levels[material, 1] > 0:
        t = scene.uvs
        u = p * t[i, 0] + q * t[j, 0] + s * t[k, 0]
        v = p * t[i, 1] + q * t[j, 1] + s * t[k, 1]
        tr, tg, tb, ta = _texel(scene, material, level, u, v)
        r, g, b, alpha = r * tr, g * tg, b * tb, alpha * ta
    return r, g, b, alpha


@njit(cache=True, nogil=True)
def _light(
    scene: Scene, f: int, p: float, q: float, s: float, eye: np.ndarray, lights: np.ndarray, ambient: float
) -> float:
    """Light that the point reflects (Lambert); faces seen from behind are lit as from the front."""
    if scene.unlit[scene.material[f]]:
        return 1.0
    i, j, k = scene.faces[f]
    v, n = scene.vertices, scene.normals
    ax, ay, az = v[j, 0] - v[i, 0], v[j, 1] - v[i, 1], v[j, 2] - v[i, 2]
    bx, by, bz = v[k, 0] - v[i, 0], v[k, 1] - v[i, 1], v[k, 2] - v[i, 2]
    fx, fy, fz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    nx = p * n[i, 0] + q * n[j, 0] + s * n[k, 0]
    ny = p * n[i, 1] + q * n[j, 1] + s * n[k, 1]
    nz = p * n[i, 2] + q * n[j, 2] + s * n[k, 2]
    side = nx * fx + ny * fy + nz * fz
    if nx * nx + ny * ny + nz * nz < 1e-12:
        nx, ny, nz, side = fx, fy, fz, 1.0
    length = max(math.sqrt(nx * nx + ny * ny + nz * nz), 1e-30)
    from_behind = fx * (eye[0] - v[i, 0]) + fy * (eye[1] - v[i, 1]) + fz * (eye[2] - v[i, 2]) < 0.0
    if (side < 0.0) != from_behind:
        length = -length
    total = ambient * (1.0 + 0.2 * ny / length)  # a little more from the sky than from the ground
    for m in range(len(lights)):
        total += max(0.0, (nx * lights[m, 0] + ny * lights[m, 1] + nz * lights[m, 2]) / length)
    return total


@njit(cache=True, nogil=True)
def mip_level(scene: Scene, screen: np.ndarray, each: int) -> np.ndarray:
    """(F,) level of its texture at which a texel of the triangle is about a pixel (`each` samples) wide."""
    found = np.zeros(len(scene.faces), dtype=np.int32)
    for f in range(len(scene.faces)):
        material = scene.material[f]
        count = scene.levels[material, 1]
        if count < 2:
            continue
        i, j, k = scene.faces[f]
        area = _doubled_area(screen, i, j, k)
        _, width, height = scene.level[scene.levels[material, 0]]
        texture = abs(_doubled_area(scene.uvs, i, j, k)) * width * height
        if area != 0.0 and texture > 0.0:
            found[f] = min(max(int(math.floor(0.5 * math.log2(texture * each * each / abs(area)))), 0), count - 1)
    return found


@njit(cache=True, nogil=True)
def _doubled_area(points: np.ndarray, i: int, j: int, k: int) -> float:
    return (points[j, 0] - points[i, 0]) * (points[k, 1] - points[i, 1]) - (points[j, 1] - points[i, 1]) * (
        points[k, 0] - points[i, 0]
    )


@njit(cache=True, nogil=True)
def rasterise(
    order: np.ndarray, over: bool, scene: Scene, screen: np.ndarray, level: np.ndarray, eye: np.ndarray,
    lights: np.ndarray,
    ambient: float, nearest: np.ndarray, owner: np.ndarray, picture: np.ndarray,
) -> None:  # fmt: skip
    """Draw the faces of `order` (indices, back to front where `over`).

    Without `over` the visible opaque faces go into `nearest` (S, S; 1 / distance) and `owner` (S, S; face). With it
    transparent faces that are not hidden are blended over `picture` (S, S, 4; linear, premultiplied).
    """
    size = len(nearest)
    for f in order:
        i, j, k = scene.faces[f]
        if screen[i, 2] <= 0.0 or screen[j, 2] <= 0.0 or screen[k, 2] <= 0.0:
            continue
        area = _doubled_area(screen, i, j, k)
        material = scene.material[f]
        if area == 0.0 or not math.isfinite(area) or (area > 0.0 and not scene.double_sided[material]):
            continue  # y points down on the screen: a positive area is seen from behind
        if area < 0.0:
            j, k, area = k, j, -area
        swapped = scene.faces[f, 1] != j
        x0, x1, x2, y0, y1, y2 = screen[i, 0], screen[j, 0], screen[k, 0], screen[i, 1], screen[j, 1], screen[k, 1]
        left, right = (
            max(int(math.ceil(min(x0, x1, x2) - 0.5)), 0),
            min(int(math.floor(max(x0, x1, x2) - 0.5)), size - 1),
        )
        top, bottom = (
            max(int(math.ceil(min(y0, y1, y2) - 0.5)), 0),
            min(int(math.floor(max(y0, y1, y2) - 0.5)), size - 1),
        )
        own0, own1, own2 = _owns(x1, y1, x2, y2), _owns(x2, y2, x0, y0), _owns(x0, y0, x1, y1)
        mode = scene.mode[material]
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                w0 = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
                w1 = (x0 - x2) * (y - y2) - (y0 - y2) * (x - x2)
                w2 = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
                if (
                    w0 < 0.0
                    or w1 < 0.0
                    or w2 < 0.0
                    or (w0 == 0.0 and not own0)
                    or (w1 == 0.0 and not own1)
                    or (w2 == 0.0 and not own2)
                ):
                    continue
                p, q, s = w0 * screen[i, 2] / area, w1 * screen[j, 2] / area, w2 * screen[k, 2] / area
                near = p + q + s  # 1 / distance is linear on the screen
                if near <= nearest[row, column]:
                    continue
                p, q, s = p / near, q / near, s / near
                if swapped:
                    q, s = s, q
                if mode == OPAQUE:
                    nearest[row, column], owner[row, column] = near, f
                    continue
                r, g, b, alpha = _albedo(scene, f, level[f], p, q, s)
                if not over:
                    if alpha >= (scene.cutoff[material] if mode == MASK else _WHOLE):
                        nearest[row, column], owner[row, column] = near, f
                elif mode == BLEND and 0.0 < alpha < _WHOLE:
                    light = alpha * _light(scene, f, p, q, s, eye, lights, ambient)
                    for channel, value in enumerate((r * light, g * light, b * light, alpha)):
                        picture[row, column, channel] = value + (1.0 - alpha) * picture[row, column, channel]


@njit(cache=True, nogil=True)
def _owns(x0: float, y0: float, x1: float, y1: float) -> bool:
    """Whether samples exactly on this edge belong to the triangle: true for one of the edge's two directions."""
    return y1 > y0 or (y1 == y0 and x1 < x0)


@njit(cache=True, nogil=True)
def shade(
    scene: Scene, screen: np.ndarray, level: np.ndarray, eye: np.ndarray, lights: np.ndarray, ambient: float,
    owner: np.ndarray,
    picture: np.ndarray, each: int,
) -> None:  # fmt: skip
    """Colour every sample owned by an opaque face.

    A face is shaded once per pixel of `each` x `each` samples, near the middle.
    """
    for top in range(0, len(owner), each):
        for left in range(0, len(owner), each):
            shaded = -1
            r = g = b = 0.0
            for row in range(top, top + each):
                for column in range(left, left + each):
                    f = owner[row, column]
                    if f < 0:
                        continue
                    if f != shaded:
                        middle = owner[top + each // 2, left + each // 2] == f
                        x, y = (left + each / 2, top + each / 2) if middle else (column + 0.5, row + 0.5)
                        r, g, b = _shaded(scene, screen, f, level[f], x, y, eye, lights, ambient)
                        shaded = f
                    picture[row, column, 0] = r
                    picture[row, column, 1] = g
                    picture[row, column, 2] = b
                    picture[row, column, 3] = 1.0


@njit(cache=True, nogil=True)
def _shaded(
    scene: Scene,
    screen: np.ndarray,
    f: int,
    level: int,
    x: float,
    y: float,
    eye: np.ndarray,
    lights: np.ndarray,
    ambient: float,
) -> tuple[float, float, float]:
    """Linear colour of face f at a screen point on it."""
    i, j, k = scene.faces[f]
    p = (
        (screen[k, 0] - screen[j, 0]) * (y - screen[j, 1]) - (screen[k, 1] - screen[j, 1]) * (x - screen[j, 0])
    ) * screen[i, 2]
    q = (
        (screen[i, 0] - screen[k, 0]) * (y - screen[k, 1]) - (screen[i, 1] - screen[k, 1]) * (x - screen[k, 0])
    ) * screen[j, 2]
    s = (
        (screen[j, 0] - screen[i, 0]) * (y - screen[i, 1]) - (screen[j, 1] - screen[i, 1]) * (x - screen[i, 0])
    ) * screen[k, 2]
    total = p + q + s
    p, q, s = p / total, q / total, s / total
    r, g, b, _ = _albedo(scene, f, level, p, q, s)
    light = _light(scene, f, p, q, s, eye, lights, ambient)
    return r * light, g * light, b * light


@njit(cache=True, nogil=True)
def resolve(picture: np.ndarray, each: int) -> np.ndarray:
    """Pixels (S / each, S / each, 4) uint8: the mean of `each` x `each` samples, straight alpha, sRGB."""
    size = len(picture) // each
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    for row in range(size):
        for column in range(size):
            r = g = b = alpha = 0.0
            for y in range(row * each, (row + 1) * each):
                for x in range(column * each, (column + 1) * each):
                    r += picture[y, x, 0]
                    g += picture[y, x, 1]
                    b += picture[y, x, 2]
                    alpha += picture[y, x, 3]
            if alpha > 0.0:
                pixels[row, column, 0] = _srgb_byte(r / alpha)
                pixels[row, column, 1] = _srgb_byte(g / alpha)
                pixels[row, column, 2] = _srgb_byte(b / alpha)
                pixels[row, column, 3] = int(255.0 * min(alpha / (each * each), 1.0) + 0.5)
    return pixels


@njit(cache=True, nogil=True)
def _srgb_byte(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    return int(255.0 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1.0 / 2.4) - 0.055) + 0.5)
