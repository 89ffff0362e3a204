"""The upper abdomen around the liver: implicit shapes that can be rendered on any axis-aligned grid (world mm, RAS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.phantom.contrast import Contrast
from models.phantom.field import FloatArray, Grid, smooth_field
from models.phantom.patient import Patient
from models.phantom.shape import AORTA_MM, SPINE_MM, WALL_MM
from models.phantom.version import appearance

Mask = npt.NDArray[np.bool_]

# Tissues by number. Those without a value here take theirs from the contrast of the scan.
_FIXED_HU: Final = {
    "air": -1000.0, "fat": -102.0, "muscle": 58.0, "skin": 20.0, "rib": 420.0, "marrow": 190.0, "cortical": 480.0,
    "disc": 85.0, "canal": 28.0, "mesentery": -98.0, "bowel": 32.0, "gas": -870.0, "lung": -850.0, "fluid": 9.0,
    "bile": 10.0, "stool": -60.0, "table": -120.0, "calcium": 750.0,
}  # fmt: skip
_TISSUES: Final = (
    *_FIXED_HU, "aorta", "portal", "hepatic_vein", "cava", "spleen", "cortex", "medulla", "liver", "heart", "artery",
    "stomach", "thrombus",
)  # fmt: skip
_CODE: Final = {name: code for code, name in enumerate(_TISSUES)}


@dataclass(frozen=True)
class Anatomy:
    """Where everything is on a grid, before any contrast.

    Attributes:
        tissue: uint8 number of the tissue (`_TISSUES`).
        texture: HU added to it.
        depth: Signed depth in the liver.
        portal_tree: Share of portal branches per liver voxel, 0..1; `hepatic_tree` and `artery_tree` alike.
        moire: Bands of the spleen, sd 1.
        portal_vein: The labelled main stem and its two branches.
        aorta: The labelled aorta.
        stomach_hu: Of its content.
    """

    tissue: npt.NDArray[np.uint8]
    texture: FloatArray
    depth: FloatArray
    portal_tree: FloatArray
    hepatic_tree: FloatArray
    artery_tree: FloatArray
    moire: FloatArray
    portal_vein: Mask
    aorta: Mask
    stomach_hu: float

    @property
    def liver(self) -> Mask:
        """Parenchyma and the vessels in it, tumours not taken out."""
        return np.asarray(self.tissue == _CODE["liver"])

    def paint(self, contrast: Contrast, open_shunt: float) -> FloatArray:
        """HU without tumours and noise.

        Args:
            contrast: HU by tissue.
            open_shunt: In [0, 1]; fills portal branches early.
        """
        table = _FIXED_HU | contrast.hu
        early = contrast.phase == "arterial"
        table["heart"] = 0.5 * (table["aorta"] + table["cava"])
        table["artery"] = 0.85 * table["aorta"]
        table["stomach"] = self.stomach_hu
        table["thrombus"] = contrast.tumour_hu - (0.0 if early else 10.0)
        if early:
            table["portal"] += appearance()["tumour"]["shunt_portal_hu"] * open_shunt
        lookup = np.array([table[name] for name in _TISSUES], np.float32)
        hu = lookup[self.tissue] + self.texture
        hu += np.float32(table["moire"]) * self.moire
        for tree, name in ((self.portal_tree, "portal"), (self.hepatic_tree, "hepatic_vein")):
            hu += tree * np.float32(table[name] - table["liver"])
        if early:
            hu += self.artery_tree * np.float32(0.6 * table["aorta"] - table["liver"])
        return np.asarray(hu, np.float32)


def _tube(grid: Grid, start: npt.ArrayLike, end: npt.ArrayLike, radius: float) -> Mask:
    a, b = np.asarray(start, float), np.asarray(end, float)
    axis = b - a
    out = np.zeros(grid.shape, bool)
    box = grid.box(np.minimum(a, b) - radius, np.maximum(a, b) + radius)
    part = grid.cut(box)
    x, y, z = part.x[:, None, None] - a[0], part.y[None, :, None] - a[1], part.z[None, None, :] - a[2]
    t = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / float(axis @ axis), 0.0, 1.0)
    distance = (x - t * axis[0]) ** 2 + (y - t * axis[1]) ** 2 + (z - t * axis[2]) ** 2
    out[box] = distance < radius**2
    return out


def _branches(one: FloatArray, two: FloatArray, calibre: FloatArray | float) -> FloatArray:
    """A tree of vessels: where two random fields are both near 0, a random curve runs."""
    inside = (calibre - np.hypot(one, two)) / np.float32(0.03)
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(inside, -30, 30))), np.float32)


def render_anatomy(patient: Patient, grid: Grid) -> Anatomy:
    """The abdomen of a patient, without tumours.

    Args:
        patient: The patient.
        grid: Voxel centres in world mm.

    Returns:
        Tissues and textures on the grid.
    """
    look, shape, seed = appearance()["body"], patient.shape, patient.seed
    rng = np.random.default_rng([seed, 41])
    b = shape.body_scale
    tissue = np.full(grid.shape, _CODE["air"], np.uint8)

    def put(mask: Mask, name: str) -> None:
        tissue[mask] = _CODE[name]

    def within(centre: npt.ArrayLike, radii: npt.ArrayLike, limit: float = 1.0) -> Mask:
        out = np.zeros(grid.shape, bool)
        middle, reach = np.asarray(centre, float), limit * np.asarray(radii, float)
        box = grid.box(middle - reach, middle + reach)
        out[box] = grid.cut(box).distance(centre, radii) < limit
        return out

    def ball(centre: npt.ArrayLike, radii: npt.ArrayLike) -> Mask:
        return within(np.asarray(centre, float) * b, np.asarray(radii, float) * b)

    full = np.zeros(grid.shape, bool)
    skin = shape.skin_depth(grid)
    fat_mm = float(rng.uniform(*look["fat_mm"])) * 0.5
    put(full | (skin > 0), "fat")
    put(full | ((skin > 0) & (skin < 1.8)), "skin")
    put(full | (skin > fat_mm), "muscle")
    angle = np.arctan2((grid.y + 5.0)[None, :], grid.x[:, None])[:, :, None]
    wave = np.sin(grid.z[None, None, :] / 4.8 + 8.0 * np.abs(angle - np.pi / 2) + rng.uniform(0, 6.3))
    middle, width = 0.5 * (fat_mm + WALL_MM * 0.72), 4.2
    cage = np.abs(skin - middle) < width
    away = np.abs(angle - np.pi / 2) > 0.45  # none in front of the belly
    put(cage & away & (wave > 0.6), "rib")
    put(cage & away & (wave > 0.75) & (np.abs(skin - middle) < width - 1.8), "marrow")
    inner = WALL_MM * 0.5 + 0.5 * fat_mm
    cavity = full | (skin > inner)
    put(cavity, "mesentery")
    loops = smooth_field(grid, seed + 3, 15.0)
    content = smooth_field(grid, seed + 13, 7.0)
    put(cavity & (loops > 0.35), "bowel")
    put(cavity & (loops > 0.9) & (content > 1.2), "gas")
    put(cavity & (loops > 0.8) & (content < -1.3), "stool")
    for side in (-1.0, 1.0):  # muscles and fat beside the spine
        put(ball((side * 30.0, -84.0, 0.0), (25.0, 17.0, 1e6)) & (skin > 6.0), "muscle")
        put(ball((side * 34.0, -62.0, -95.0), (16.0, 14.0, 60.0)), "muscle")
    heart = ball((-22.0, 28.0, 104.0), (50.0, 44.0, 40.0))
    dome = 70.0 - 0.0028 * ((grid.x[:, None] - 40.0) ** 2 + (grid.y[None, :] - 5.0) ** 2) + 6.0 * rng.standard_normal()
    put(cavity & (grid.z[None, None, :] > dome[:, :, None]), "lung")
    put(cavity & heart, "heart")

    size = (
        look["splenomegaly"] * float(rng.uniform(0.9, 1.1))
        if patient.record.cirrhosis
        else float(rng.uniform(0.85, 1.1))
    )
    spleen = ball((-100.0, -34.0, 12.0), np.array((27.0, 42.0, 46.0)) * size) & cavity
    put(spleen, "spleen")
    for x in (58.0, -60.0):
        z = float(rng.normal(-78.0, 8.0))
        put(ball((x, -54.0, z), (25.0, 25.0, 46.0)), "cortex")
        put(ball((x, -54.0, z), (17.0, 17.0, 36.0)), "medulla")
        put(ball((x - np.sign(x) * 9.0, -50.0, z), (9.0, 9.0, 20.0)), "mesentery")
    wide = float(rng.uniform(0.75, 1.15))
    stomach = ball((-62.0, 40.0, 12.0), np.array((36.0, 30.0, 44.0)) * wide) & cavity
    put(stomach, "muscle")
    put(ball((-62.0, 40.0, 12.0), np.array((32.0, 26.0, 40.0)) * wide) & cavity, "stomach")
    level = 40.0 + float(rng.uniform(4.0, 26.0))
    put(ball((-62.0, 40.0, 12.0), np.array((32.0, 26.0, 40.0)) * wide) & (grid.y[None, :, None] > level * b), "gas")
    colon = ball((72.0, 40.0, -94.0), (26.0, 22.0, 22.0)) & cavity
    put(colon, "stool")
    put(colon & (grid.y[None, :, None] > 44.0), "gas")

    depth = shape.liver_depth(grid)
    room = skin > max(inner, WALL_MM * 0.5)
    if patient.record.ascites == "mild":
        put(
            (depth > -look["ascites_reach"]) & (depth <= 0) & cavity & (grid.z[None, None, :] < dome[:, :, None]),
            "fluid",
        )
    put((depth > 0.0) & room, "liver")
    liver = tissue == _CODE["liver"]
    if rng.random() < look["gallbladder"]:
        bladder = ball((34.0, 40.0, -48.0), (14.0, 16.0, 26.0))
        put(bladder & ~liver | (ball((34.0, 42.0, -50.0), (11.0, 12.0, 20.0)) & cavity), "bile")

    (spine_x, spine_y), spine = SPINE_MM
    column = (spine_x, spine_y * b, 0.0), (spine, spine * 0.85, 1e6)
    bone = within(*column)
    put(bone, "cortical")
    put(within(*column, 0.9), "marrow")
    between = np.sin(grid.z / 5.1 + rng.uniform(0, 6.3))[None, None, :] > 0.88
    put(bone & between, "disc")
    put(within((0.0, (spine_y - 27.0) * b, 0.0), (14.0, 11.0, 1e6)), "cortical")
    put(within((0.0, (spine_y - 26.0) * b, 0.0), (10.0, 8.0, 1e6)), "canal")
    put(within((0.0, (spine_y - 41.0) * b, 0.0), (4.0, 11.0, 1e6)), "cortical")

    (aorta_x, aorta_y), aorta_radius = AORTA_MM
    pipe = (aorta_x * b, aorta_y * b, 0.0), (aorta_radius, aorta_radius, 1e6)
    aorta = within(*pipe, 0.96)
    put(aorta, "aorta")
    if rng.random() < look["calcified_aorta"]:
        put(within(*pipe, 1.08) & ~within(*pipe, 0.92) & (content > 1.2), "calcium")
    put(within((17.0 * b, -36.0 * b, 0.0), (11.0, 8.5, 1e6)), "cava")
    hilum, left = np.array((30.0, -4.0, -10.0)) * b, np.array((-20.0, 16.0, 6.0)) * b
    right = np.array((58.0, 2.0, 2.0)) * b
    stem = np.array((2.0, -22.0, -46.0)) * b
    for start, end, radius in (
        (np.array((aorta_x, aorta_y, -14.0)) * b, np.array((4.0, -18.0, -14.0)) * b, 3.2),
        (np.array((4.0, -18.0, -14.0)) * b, hilum + np.array((2.0, 10.0, 2.0)), 2.6),
        (np.array((4.0, -18.0, -14.0)) * b, np.array((-88.0, -44.0, 8.0)) * b, 2.8),
    ):
        put(_tube(grid, start, end, radius), "artery")
    put(_tube(grid, stem, np.array((-84.0, -40.0, 2.0)) * b, 4.2), "portal")
    portal_vein = _tube(grid, stem, hilum, 6.5) | _tube(grid, hilum, right, 5.0) | _tube(grid, hilum, left, 4.5)
    put(portal_vein, "portal")
    invasion = patient.record.portal_vein_invasion or "none"
    if invasion != "none":
        clot = _tube(grid, hilum, right if patient.lesions[0].centre_mm[0] > 10 else left, 7.5)
        if invasion == "main":
            clot |= _tube(grid, 0.4 * stem + 0.6 * hilum, hilum, 8.5)
        put(clot, "thrombus")
        portal_vein |= clot
    bed = -121.0 * b - 9.0 + 0.0012 * grid.x**2
    off = np.abs(grid.y[None, :] - bed[:, None])[:, :, None] < 2.2
    put(full | (off & (skin < 0)), "table")

    liver = tissue == _CODE["liver"]
    texture = np.zeros(grid.shape, np.float32)
    fine = smooth_field(grid, seed + 5, 4.0)
    coarse = smooth_field(grid, seed + 4, 11.0)
    nodules = float(rng.uniform(3.0, 8.0)) if patient.record.cirrhosis else 1.5
    texture += liver * (np.float32(rng.uniform(2.0, 5.0)) * coarse + np.float32(nodules) * fine)
    texture += (~liver & (skin > 0)) * (np.float32(6.0) * fine)
    bony = (tissue == _CODE["marrow"]) | (tissue == _CODE["cortical"])
    texture += bony * (np.float32(60.0) * fine)
    texture += (tissue == _CODE["lung"]) * np.float32(45.0) * np.clip(content, -1, 3)
    calibre = (0.11 + 0.11 * np.clip(depth, 0, 1)).astype(np.float32)
    fields = [smooth_field(grid, seed + k, scale) for k, scale in ((6, 26.0), (7, 26.0), (8, 30.0), (9, 30.0))]
    portal_tree = _branches(fields[0], fields[1], calibre) * liver
    hepatic_tree = _branches(fields[2], fields[3], calibre) * liver * (1.0 - portal_tree)
    artery_tree = _branches(fields[0] - np.float32(0.3), fields[1], 0.05) * liver * (1.0 - portal_tree)
    stripes = coarse + 0.5 * fine
    oral = look["oral_contrast"]
    stomach_hu = float(rng.uniform(*oral["hu"]) if rng.random() < oral["share"] else rng.uniform(5.0, 40.0))
    return Anatomy(
        tissue=tissue,
        texture=texture,
        depth=depth,
        portal_tree=portal_tree.astype(np.float32),
        hepatic_tree=hepatic_tree.astype(np.float32),
        artery_tree=artery_tree.astype(np.float32),
        moire=np.asarray((tissue == _CODE["spleen"]) * stripes, np.float32),
        portal_vein=portal_vein,
        aorta=aorta,
        stomach_hu=stomach_hu,
    )
