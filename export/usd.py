"""USDZ: a head for phones and for film tools; needs the package usd-core (the extra `usd`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from headlift.errors import ConfigError
from headlift.export.files import atomic_path, write_bytes
from headlift.export.images import png_bytes
from headlift.export.mesh import Mesh
from headlift.export.placement import Placement


def check_usd() -> None:
    """Raises ConfigError, with the remedy, when the package for USDZ is missing."""
    try:
        import pxr  # noqa: F401
    except ImportError:
        raise ConfigError("USDZ needs the package usd-core; install it with: pip install 'headlift[usd]'") from None


def write_usdz(mesh: Mesh, path: Path | str, placement: Placement | None = None) -> None:
    """Write a USDZ: one mesh with a matte UsdPreviewSurface, its texture inside (sRGB) or linear vertex colours.

    Raises:
        ConfigError: the package is missing.
        OutputError: the place cannot be written.
    """
    check_usd()
    from pxr import Sdf, Usd, UsdGeom, UsdShade, UsdUtils, Vt

    placement = placement or Placement()
    up = placement.up_axis(".usdz")
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as target:
        inner = Path(folder) / "head.usdc"
        stage = Usd.Stage.CreateNew(str(inner))
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z if up == "z" else UsdGeom.Tokens.y)
        root = UsdGeom.Xform.Define(stage, "/head")
        stage.SetDefaultPrim(root.GetPrim())
        shape = UsdGeom.Mesh.Define(stage, "/head/surface")
        points = placement.points(mesh.vertices, ".usdz")
        shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
        shape.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([points.min(axis=0), points.max(axis=0)])))
        shape.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, dtype=np.int32)))
        shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.reshape(-1).astype(np.int32)))
        shape.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(placement.directions(mesh.normals, ".usdz")))
        shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
        shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        shape.CreateDoubleSidedAttr(True)
        back = placement.to_world(".usdz").reshape(-1).tolist()
        root.GetPrim().SetCustomDataByKey("headlift:mesh_to_world", Vt.DoubleArray(back))

        material = UsdShade.Material.Define(stage, "/head/matte")
        surface = UsdShade.Shader.Define(stage, "/head/matte/surface")
        surface.CreateIdAttr("UsdPreviewSurface")
        surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
        surface.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
        material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
        diffuse = surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
        primvars = UsdGeom.PrimvarsAPI(shape)
        if mesh.texture is not None:
            write_bytes(Path(folder) / "skin.png", png_bytes(mesh.texture.image))
            uv = (mesh.texture.uv * [1, -1] + [0, 1]).astype(np.float32)
            st = primvars.CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying)
            st.Set(Vt.Vec2fArray.FromNumpy(uv))
            st.SetIndices(Vt.IntArray.FromNumpy(mesh.texture.faces.reshape(-1).astype(np.int32)))
            reader = UsdShade.Shader.Define(stage, "/head/matte/st")
            reader.CreateIdAttr("UsdPrimvarReader_float2")
            reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
            picture = UsdShade.Shader.Define(stage, "/head/matte/skin")
            picture.CreateIdAttr("UsdUVTexture")
            picture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set("skin.png")
            picture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
            for wrap in ("wrapS", "wrapT"):
                picture.CreateInput(wrap, Sdf.ValueTypeNames.Token).Set("clamp")
            picture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(
                reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
            )
            diffuse.ConnectToSource(picture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
        elif mesh.colors is not None:
            shown = shape.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex)
            shown.Set(Vt.Vec3fArray.FromNumpy(mesh.colors.astype(np.float32)))
            reader = UsdShade.Shader.Define(stage, "/head/matte/colour")
            reader.CreateIdAttr("UsdPrimvarReader_float3")
            reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("displayColor")
            diffuse.ConnectToSource(reader.CreateOutput("result", Sdf.ValueTypeNames.Float3))
        UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)
        stage.GetRootLayer().Save()
        if not UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(inner)), str(target)):
            raise OSError(f"usd-core could not pack {path}")
