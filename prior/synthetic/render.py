"""Draws heads with OpenGL (EGL, no window): RGBA and depth for any camera.

Soft light comes from an environment whose visibility is baked for each vertex once a head (spherical harmonics of
order 2, a depth map from each of 32 directions), the key light from a shadow map; skin irradiance is blurred over
the surface, red furthest. Hair is drawn in two passes: an opaque core, then soft texels from back to front. On a
machine without a graphics card Mesa's software renderer does all of it, the same numbers each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import moderngl
import numpy as np
from jaxtyping import Float, UInt8

from headlift.errors import DeviceError
from headlift.prior.synthetic import hair, shaders
from headlift.prior.synthetic.body import HeadGeometry
from headlift.prior.synthetic.bundle import Bundle
from headlift.prior.synthetic.geometry import Mesh
from headlift.prior.synthetic.lighting import Light, harmonics, spread_directions
from headlift.prior.synthetic.sampling import HeadParams

NEAR, FAR = 1.8, 3.6
"""Clipping planes before the camera, world units."""
DIRECTIONS, BAKE_SIDE, SHADOW_SIDE = 32, 192, 768
"""Directions of the baked light; pixels along a side of their depth maps and of the key light's."""
HAIR_GAIN = 1.25
"""Factor on the opacity of hair's textures."""
CORE = 0.62
"""From this opacity on hair is drawn as opaque."""
CORE_IN_DEPTH = 0.4
"""From this opacity on hair counts in depth and shadow maps (from less in baked light, which uses half the strands)."""
LUMA = np.array([0.3, 0.5, 0.2])
EGL: dict[str, Any] = {"backend": "egl"}
NO_EGL = (
    "No OpenGL 3.3 without a window here ({}). On Debian or Ubuntu install what it needs: "
    "sudo apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"
)


class Renderer:
    """An OpenGL context with its programs, targets and the textures of one bundle. Not to be shared by threads.

    Raises DeviceError where there is no OpenGL.
    """

    def __init__(self, bundle: Bundle, side: int = 256, supersampling: int = 2) -> None:
        try:
            self.context = moderngl.create_context(standalone=True, **EGL)
        except Exception as error:  # glcontext raises bare Exceptions
            raise DeviceError(NO_EGL.format(error)) from error
        c = self.context
        self.side, self.inner = side, side * supersampling
        self._bundle = bundle
        self.depth_program = c.program(vertex_shader=shaders.DEPTH_VERTEX, fragment_shader=shaders.DEPTH)
        self.cloth_depth_program = c.program(
            vertex_shader=shaders.CLOTH_DEPTH_VERTEX, fragment_shader=shaders.CLOTH_DEPTH
        )
        self.programs = {
            kind: c.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.fragment(kind))
            for kind in shaders.SURFACES
        }
        inner = (self.inner, self.inner)
        self.colour = c.framebuffer([c.renderbuffer(inner, 4)], c.depth_renderbuffer(inner))
        self.depth_map, self.depth_target = self._depth_target(side)
        self.baking_map, self.baking_target = self._depth_target(BAKE_SIDE)
        self.shadow_map, self.shadow_target = self._depth_target(SHADOW_SIDE)
        self.shadow_map.compare_func = ""
        self.shadow_map.repeat_x = self.shadow_map.repeat_y = False
        self._textures: dict[str, tuple[moderngl.Texture, float]] = {}
        self.noise = self.upload(_noise())

    def close(self) -> None:
        """Gives the context back."""
        self.context.release()

    @contextmanager
    def scene(self, head: HeadGeometry, params: HeadParams, skin: Float[np.ndarray, "s s 4"] | None) -> Iterator[Scene]:
        """A head ready to be lit and looked at (without a skin: its depth alone); its buffers are freed in the end."""
        scene = Scene(self, head, params, skin)
        try:
            yield scene
        finally:
            scene.release()

    def texture(self, name: str) -> tuple[moderngl.Texture, float]:
        """A texture of the bundle (or the one of ribbons) and its mean luminance where it is opaque."""
        if name not in self._textures:
            rgba = hair.ribbon_texture() if name == hair.RIBBON else self._bundle.texture(name)
            luminance = (rgba[..., :3] / 255.0) ** 2.2 @ LUMA
            weight = rgba[..., 3] / 255.0
            self._textures[name] = self.upload(rgba), float((luminance * weight).sum() / max(weight.sum(), 1))
        return self._textures[name]

    def upload(self, pixels: UInt8[np.ndarray, "h w c"] | Float[np.ndarray, "h w c"]) -> moderngl.Texture:
        """A texture with mipmaps from rows that go down."""
        rows = np.ascontiguousarray(pixels[::-1])
        size = (rows.shape[1], rows.shape[0])
        kind = "f1" if rows.dtype == np.uint8 else "f2"
        texture = self.context.texture(size, rows.shape[2], rows.tobytes(), dtype=kind, alignment=1)
        texture.build_mipmaps()
        texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        return texture

    def _depth_target(self, side: int) -> tuple[moderngl.Texture, moderngl.Framebuffer]:
        texture = self.context.depth_texture((side, side))
        return texture, self.context.framebuffer([], texture)


class Scene:
    """One head in a renderer: `light` it, then `view` it from any camera."""

    def __init__(
        self, renderer: Renderer, head: HeadGeometry, params: HeadParams, skin: Float[np.ndarray, "s s 4"] | None
    ) -> None:
        self._renderer, self._head, self._params = renderer, head, params
        c = renderer.context
        self._buffers: list[Any] = []
        if skin is not None:
            self._skin = self._keep(renderer.upload(skin.astype("f2")))
        self._shaded: dict[str, moderngl.VertexArray] = {}
        self._depths: dict[str, moderngl.VertexArray] = {}
        self._indices: dict[str, moderngl.Buffer] = {}
        self._irradiance: dict[str, moderngl.Buffer] = {}
        for name, mesh in head.parts.items():
            self._upload(name, mesh)
        positions, triangles = head.occluder
        low = self._keep(c.buffer(positions.astype("f4"))), self._keep(c.buffer(np.zeros((len(positions), 2), "f4")))
        layout = [(low[0], "3f", "in_pos"), (low[1], "2f", "in_uv")]
        indices = self._keep(c.buffer(triangles.astype("u4")))
        self._occluder = self._keep(c.vertex_array(renderer.depth_program, layout, indices))
        self._transfer = {} if skin is None else self._bake()
        self._light: Light | None = None

    def release(self) -> None:
        """Frees what lies on the graphics device."""
        for thing in reversed(self._buffers):
            thing.release()
        self._buffers.clear()

    def light(self, light: Light) -> None:
        """Lights the head and sets the exposure by its face."""
        self._light = light
        for name, mesh in self._head.parts.items():
            transfer = self._transfer[name]
            irradiance = np.stack([transfer[i] @ light.environment[:, i] for i in range(3)], -1)
            rows = np.maximum(irradiance, 0.002)[mesh.corner]
            self._irradiance[name].write(np.ascontiguousarray(rows, "f4"))
        self._shadow_matrix = _orthographic(light.key)
        self._draw_depth(self._renderer.shadow_target, self._shadow_matrix)
        skin = self._head.parts["skin"]
        assert skin.rest is not None
        face = (skin.rest[:, 2] > 1.1) & (skin.rest[:, 1] > 6.4) & (skin.rest[:, 1] < 8)
        transfer = self._transfer["skin"]
        soft = sum(float((transfer[i][face] @ light.environment[:, i]).mean()) * LUMA[i] for i in range(3))
        hard = np.clip(skin.normals[face] @ light.key.astype("f4"), 0, 1).mean() * 0.85
        self._exposure = float(light.exposure * 0.80 / (soft + hard * float(light.key_colour @ LUMA) + 0.05))

    def view(self, label: Float[np.ndarray, " 25"]) -> tuple[Float[np.ndarray, "s s 4"], Float[np.ndarray, "s s"]]:
        """The picture for an EG3D label: RGBA in [0, 1] (sRGB, premultiplied) and z-depth (world units, 0 outside).

        Hair is in the depth where it is mostly opaque; lenses of spectacles are not.
        """
        assert self._light is not None, "a scene is lit before it is viewed"
        r, c = self._renderer, self._renderer.context
        cam2world, projection = _camera(label)
        eye = cam2world[:3, 3]
        depth = self.depth(label)
        r.colour.use()
        r.colour.clear(0, 0, 0, 0, depth=1.0)
        c.enable_only(moderngl.DEPTH_TEST)
        r.noise.use(1)
        r.shadow_map.use(2)
        for name, texture, uniforms in self._opaque():
            self._draw(name, texture, projection, eye, **uniforms)
        for name, texture, uniforms in self._blended():
            mesh = self._head.parts[name]
            if mesh.kind == "hair":
                self._draw(name, texture, projection, eye, amin=CORE, amax=9.0, **uniforms)
                away = (mesh.surface.mean(1) - eye) @ cam2world[:3, 2]
                self._indices[name].write(mesh.triangles[np.argsort(-away)].astype("u4"))
            c.enable_only(moderngl.DEPTH_TEST | moderngl.BLEND)
            c.blend_func = moderngl.ONE, moderngl.ONE_MINUS_SRC_ALPHA
            r.colour.depth_mask = False
            most = CORE if mesh.kind == "hair" else 9.0
            self._draw(name, texture, projection, eye, amin=0.02, amax=most, **uniforms)
            r.colour.depth_mask = True
            c.enable_only(moderngl.DEPTH_TEST)
        pixels = np.frombuffer(r.colour.read(components=4), "u1").reshape(r.inner, r.inner, 4)[::-1]
        k = r.inner // r.side
        picture = pixels.reshape(r.side, k, r.side, k, 4).mean((1, 3)) / 255
        return picture.astype("f4"), depth

    def depth(self, label: Float[np.ndarray, " 25"], last: bool = False) -> Float[np.ndarray, "s s"]:
        """z-depth for an EG3D label, world units, 0 outside; needs no light. With `last`, that of the farthest surface
        behind each pixel instead of the nearest: where the head ends."""
        r = self._renderer
        self._draw_depth(r.depth_target, _camera(label)[1], skin=self._depths["skin"], last=last)
        window = np.frombuffer(r.depth_map.read(), "f4").reshape(r.side, r.side)[::-1]
        clip = 2 * window.astype("f8") - 1
        depth = 2 * FAR * NEAR / (FAR + NEAR - clip * (FAR - NEAR))
        return np.where(window > 0 if last else window < 1, depth, 0).astype("f4")

    def _opaque(self) -> Iterator[tuple[str, moderngl.Texture, dict[str, Any]]]:
        """What is drawn first: part, texture, uniforms."""
        r, p, parts = self._renderer, self._params, self._head.parts
        groom = p.groom
        cropped = 0.12 if p.hair == "bald" else 0.92 if groom else 0.3
        longer = float(groom is not None and groom.top > 1.5)
        skin = {
            "prm": (p.freckles, p.stubble, p.oil, p.makeup),
            "prm2": (cropped, longer, groom.recede if groom else 0.0, 0),
            "tint": p.haircol,
            "tint2": p.lip,
        }
        yield "skin", self._skin, skin
        iris = {"axis": tuple(self._head.gaze.tolist()), "prm": (0.3 if "brown" in p.eye else 0.6, 0, 0, 0)}
        yield "eye", r.texture(parts["eye"].texture or "")[0], iris
        if "teeth" in parts:
            yield "teeth", r.texture("teeth")[0], {"prm": (0.85, 0, 0, 0)}
            yield "tongue", r.texture("tongue")[0], {"prm": (0.7, 0, 0, 0)}
        shirt = p.cloth
        other = tuple(np.clip(1 - np.array(shirt.col), 0.03, 0.8).tolist())
        yield "cloth", r.noise, {"prm": (shirt.neck, shirt.v, shirt.pat, 0), "tint": shirt.col, "tint2": other}
        if p.glasses is not None:
            yield "glasses", r.noise, {"tint": p.glasses.col}

    def _blended(self) -> Iterator[tuple[str, moderngl.Texture, dict[str, Any]]]:
        """What is drawn over it, in this order."""
        p, parts = self._params, self._head.parts
        dark = np.array(p.haircol)
        for name in ("brow", "lash", "beard", "hair"):
            if name not in parts:
                continue
            texture, luminance = self._renderer.texture(parts[name].texture or "")
            if name in ("hair", "beard"):
                worn = {"prm": (luminance, 0.75, 0.7, 0), "prm2": (0, HAIR_GAIN, 0, 0), "tint": p.haircol, "apow": 1.0}
                yield name, texture, worn
            elif name == "brow":
                tint = tuple((dark * 0.55 + 0.004).tolist())
                yield name, texture, {"prm": (1, 0, 0.2, 0), "prm2": (0, 1.0, 0, 0), "tint": tint, "apow": 0.8}
            else:
                thick = 0.85 if p.gender < 0.5 else 0.45
                lash = {"prm2": (0, thick, 0, 0), "tint": (0.01, 0.007, 0.006), "apow": 1.3}
                yield name, texture, {"prm": (1, 0, 0.1, 0), **lash}
        if p.glasses is not None:
            yield "lens", self._renderer.noise, {"prm": (p.glasses.shade, 0, 0, 0), "tint": (0.02, 0.02, 0.02)}

    def _draw(
        self, name: str, texture: moderngl.Texture, projection: np.ndarray, eye: np.ndarray, **uniforms: Any
    ) -> None:
        assert self._light is not None
        program: Any = self._shaded[name].program
        texture.use(0)
        values = {
            "tex": 0, "noise": 1, "smap": 2, "eye": tuple(eye), "keydir": tuple(self._light.key),
            "keycol": tuple(self._light.key_colour), "soft": self._light.softness, "expo": self._exposure, **uniforms,
        }  # fmt: skip
        for key, value in values.items():
            if key in program:  # what a shader does not use is not there
                program[key] = value
        matrices = {"VP": projection.T, "LVP": self._shadow_matrix.T, "sh": self._light.environment}
        for key, matrix in matrices.items():
            if key in program:
                program[key].write(matrix.astype("f4").tobytes())
        self._shaded[name].render()

    def _draw_depth(
        self,
        target: moderngl.Framebuffer,
        projection: np.ndarray,
        skin: moderngl.VertexArray | None = None,
        baking: bool = False,
        last: bool = False,
    ) -> None:
        """Into a depth map, the nearest surface or the `last`: the coarse skin or the one given; for baked light half
        the strands and no small parts."""
        r, matrix = self._renderer, projection.T.astype("f4").tobytes()
        uniforms: Any = r.depth_program
        target.use()
        target.clear(depth=0.0 if last else 1.0)
        r.context.enable_only(moderngl.DEPTH_TEST)
        r.context.depth_func = ">" if last else "<"
        uniforms["VP"].write(matrix)
        uniforms["amin"], uniforms["ak"] = 0.0, 1.0
        (skin or self._occluder).render()
        shirt, neckline = self._params.cloth, r.cloth_depth_program
        cloth_uniforms: Any = neckline
        cloth_uniforms["VP"].write(matrix)
        cloth_uniforms["prm"] = (shirt.neck, shirt.v, shirt.pat, 0)
        self._depths["cloth"].render()
        if not baking:
            for name in ("eye", "teeth", "tongue", "glasses"):
                if name in self._depths:
                    self._depths[name].render()
        for name in ("hair", "beard"):
            mesh = self._head.parts.get(name)
            if mesh is None:
                continue
            r.texture(mesh.texture or "")[0].use(0)
            uniforms["amin"], uniforms["ak"] = (0.25 if baking else CORE_IN_DEPTH), HAIR_GAIN
            strands = baking and mesh.topology is None
            self._depths[name].render(vertices=len(mesh.triangles) * 3 // 2 // 3 * 3 if strands else -1)
        r.context.depth_func = "<"

    def _upload(self, name: str, mesh: Mesh) -> None:
        r, c = self._renderer, self._renderer.context
        rest = mesh.rest if mesh.rest is not None else np.zeros_like(mesh.positions)
        if mesh.brightness is not None:
            rest = np.repeat(mesh.brightness[:, None], 3, 1)
        position = self._keep(c.buffer(np.ascontiguousarray(mesh.positions[mesh.corner], "f4")))
        normal = self._keep(c.buffer(np.ascontiguousarray(mesh.normals[mesh.corner], "f4")))
        uv = self._keep(c.buffer(np.ascontiguousarray(mesh.uv, "f4")))
        attribute = self._keep(c.buffer(np.ascontiguousarray(rest[mesh.corner], "f4")))
        irradiance = self._irradiance[name] = self._keep(c.buffer(reserve=len(mesh.corner) * 12))
        indices = self._indices[name] = self._keep(c.buffer(np.ascontiguousarray(mesh.triangles, "u4")))
        inputs = [
            (position, "3f", "in_pos"),
            (normal, "3f", "in_nrm"),
            (uv, "2f", "in_uv"),
            (attribute, "3f", "in_rest"),
            (irradiance, "3f", "in_irr"),
        ]

        def array(program: moderngl.Program) -> moderngl.VertexArray:
            used = [(b, f, a) for b, f, a in inputs if a in program]
            return self._keep(c.vertex_array(program, used, indices))

        self._shaded[name] = array(r.programs["hair" if mesh.kind == "card" else mesh.kind])
        if name == "cloth":
            self._depths[name] = array(r.cloth_depth_program)
        elif mesh.kind != "lens":
            self._depths[name] = array(r.depth_program)

    def _keep(self, thing: Any) -> Any:
        self._buffers.append(thing)
        return thing

    def _bake(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For red, green, blue: harmonics of the cosine-weighted visibility at each vertex (hair: a wrapped cosine)."""
        r, parts = self._renderer, self._head.parts
        points = {name: _sample_points(mesh) for name, mesh in parts.items()}
        total = {name: np.zeros((len(p), 9), "f4") for name, (p, _) in points.items()}
        directions = spread_directions(DIRECTIONS)
        solid_angle = 4 * np.pi / DIRECTIONS / np.pi
        for direction, basis in zip(directions, harmonics(directions), strict=True):
            matrix = _orthographic(direction)
            self._draw_depth(r.baking_target, matrix, baking=True)
            depth = np.frombuffer(r.baking_map.read(), "f4").reshape(BAKE_SIDE, BAKE_SIDE)
            rotation, origin = matrix[:3, :3].T.astype("f4"), matrix[:3, 3]
            for name, mesh in parts.items():
                position, normal = points[name]
                opaque = mesh.kind in ("skin", "cloth", "eye")
                off = 0.010 if opaque else 0.014
                shift = (origin + (direction * off) @ matrix[:3, :3].T).astype("f4")
                q = position @ rotation + (normal @ rotation) * np.float32(off * 0.6) + shift
                pixel = np.clip(((q[:, :2] * 0.5 + 0.5) * BAKE_SIDE).astype(int), 0, BAKE_SIDE - 1)
                seen = (depth[pixel[:, 1], pixel[:, 0]] > q[:, 2] * 0.5 + 0.5).astype("f4")
                cosine = normal @ direction.astype("f4")
                if opaque or mesh.kind in ("teeth", "solid", "lens"):
                    weight = np.maximum(cosine, 0)
                else:
                    weight = np.clip((cosine + 0.5) / 1.5, 0, 1) * 0.75
                if mesh.kind == "hair":
                    seen = 0.03 + 0.97 * seen
                total[name] += (seen * weight * solid_angle)[:, None] * basis
        return {name: _smoothed(mesh, total[name]) for name, mesh in parts.items()}


def _sample_points(mesh: Mesh) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Where light is baked, with normals: the vertices, or the middle of each of a ribbon's cross-sections."""
    if mesh.topology is not None:
        return mesh.positions, mesh.normals
    middle = (mesh.positions[::2] + mesh.positions[1::2]) / 2
    return np.ascontiguousarray(middle), np.ascontiguousarray(mesh.normals[::2])


def _smoothed(mesh: Mesh, transfer: Float[np.ndarray, "n 9"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Baked light for red, green and blue, blurred over the surface; in skin red goes furthest."""
    if mesh.topology is None:
        both = np.repeat(transfer, 2, 0)
        return both, both, both
    smooth = mesh.topology.smoothing
    if mesh.kind == "skin":
        blue = smooth @ transfer
        green = smooth @ blue
        red = smooth @ (smooth @ (smooth @ green))
        return red, green, blue
    same = smooth @ (smooth @ transfer)
    same = same * np.float32(0.8) if mesh.kind == "teeth" else same
    return same, same, same


def _camera(label: Float[np.ndarray, " 25"]) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]]:
    """cam2world of an EG3D label, and the matrix from the world to OpenGL's clip space."""
    cam2world = label[:16].reshape(4, 4).astype("f8")
    return cam2world, _perspective(float(label[16])) @ np.linalg.inv(cam2world @ np.diag([1, -1, -1, 1]))


def _perspective(focal: float) -> Float[np.ndarray, "4 4"]:
    """OpenGL's projection for a focal length over the image's side."""
    a, b = -(FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR)
    return np.array([[2 * focal, 0, 0, 0], [0, 2 * focal, 0, 0], [0, 0, a, b], [0, 0, -1, 0]])


def _orthographic(
    direction: Float[np.ndarray, " 3"], radius: float = 0.62, centre: tuple[float, float, float] = (0.0, 0.02, 0.0)
) -> Float[np.ndarray, "4 4"]:
    """A parallel view of the whole head from a direction, into OpenGL's clip cube; `radius` in world units."""
    d = direction / np.linalg.norm(direction)
    right = np.cross((0, 1, 0) if abs(d[1]) < 0.95 else (0, 0, 1), d)
    right = right / np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[0, :3], matrix[1, :3], matrix[2, :3] = right / radius, np.cross(d, right) / radius, -d / (radius * 1.6)
    matrix[:3, 3] = -matrix[:3, :3] @ centre
    return matrix


def _noise(side: int = 512, seed: int = 7) -> UInt8[np.ndarray, "s s 4"]:
    """Four kinds of periodic noise: pores, finer pores, mottling, freckles."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(side)
    squared = frequency[:, None] ** 2 + frequency[None] ** 2
    channels = []
    for sigma in (1.2, 1.0, 9.0, 3.0):
        blur = np.exp(-2 * (np.pi * sigma) ** 2 * squared)
        smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * blur).real
        channels.append(np.clip(0.5 + smooth / smooth.std() * 0.17, 0, 1))
    return (np.stack(channels, -1) * 255).astype("u1")
