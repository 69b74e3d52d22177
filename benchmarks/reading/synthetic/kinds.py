"""The kinds of pictures that people bring, each as paper, pen, light, surroundings, camera and file."""

import zlib

from PIL import features

from benchmarks.reading.synthetic import cameras, image_files, layouts, pages, paper
from benchmarks.reading.synthetic.cameras import joined, laid_on, padded, turned
from benchmarks.reading.synthetic.image_files import jpeg, saved
from benchmarks.reading.synthetic.layouts import cut, in_strokes, lined, one
from benchmarks.reading.synthetic.pages import form_row, grid_of_mnist, lines_of
from benchmarks.reading.synthetic.paper import BLACK, CREAM, DARK_BLUE, GREY, PALE_BLUE, RED, WHITE, ruled, shadow
from benchmarks.reading.synthetic.pictures import (
    BALLPOINT,
    BRUSH,
    CHALK,
    FELT,
    HAIRLINE,
    LARGE,
    MARKER,
    PEN,
    PENCIL,
    Kind,
    clean,
    mnist,
    picture,
)

GRAPH = {"spacing": 0.05, "across": True}
DESK = joined(turned(3, 0.7), laid_on(paper.WOOD))
ROW, FEW = lines_of((1, 1), (2, 8)), lines_of((1, 1), (2, 5))

PAPERS: dict[str, Kind] = {
    "pen": picture(),
    "pencil": picture(tool=PENCIL),
    "ballpoint": picture(tool=BALLPOINT),
    "felt tip": picture(tool=FELT),
    "thick marker": picture(tool=MARKER),
    "hairline": picture(tool=HAIRLINE, colour=WHITE),
    "chalk on a blackboard": picture(tool=CHALK, colour=paper.BOARD, under=(paper.smudged,)),
    "whiteboard with glare": picture(
        tool=FELT._replace(colour=(0.1, 0.2, 0.6)), colour=WHITE, over=(paper.falling_light(0.8), paper.glare(0.9))
    ),
    "small digit off the middle": picture(one(0.12, 0.18, 0.3)),
    "large digit": picture(one(0.7, 0.85, 0.03)),
    "printed digit": picture(pages.printed(1, 1), colour=WHITE),
    "printed digit, drawn by a program": clean(pages.printed(1, 1)),
    "digit touches the border": clean(layouts.at_border),
    "crumbs beside the digit": picture(under=(paper.crumbs(5, 25),)),
    "salt and pepper": clean(over=(cameras.impulses(0.03),)),
    "ruled paper, pale": picture(under=(ruled(PALE_BLUE),)),
    "ruled paper, dark": picture(under=(ruled(DARK_BLUE),)),
    "ruled paper, pencil": picture(tool=PENCIL, under=(ruled(PALE_BLUE),)),
    "graph paper, pale, pen": picture(under=(ruled(PALE_BLUE, **GRAPH),)),
    "graph paper, pale, pencil": picture(tool=PENCIL, under=(ruled(PALE_BLUE, **GRAPH),)),
    "graph paper, dark, pen": picture(under=(ruled(DARK_BLUE, **GRAPH),)),
    "graph paper, dark, pencil": picture(tool=PENCIL, under=(ruled(DARK_BLUE, **GRAPH),)),
    "dotted paper, pen": picture(under=(paper.dotted((0.5, 0.5, 0.55)),)),
    "dotted paper, pencil": picture(tool=PENCIL, under=(paper.dotted((0.5, 0.5, 0.55)),)),
    "dotted paper, dark, pencil": picture(tool=PENCIL, under=(paper.dotted((0.25, 0.25, 0.3)),)),
    "lined yellow paper": picture(colour=paper.YELLOW, under=(ruled(PALE_BLUE), paper.line_at(0.1, 0.16, RED))),
    "red margin line": picture(under=(paper.line_at(0.08, 0.2, RED),)),
    "red margin line and rules": picture(under=(ruled(PALE_BLUE), paper.line_at(0.08, 0.2, RED))),
    "black vertical rule": picture(under=(paper.line_at(0.05, 0.18, BLACK),)),
    "line below": picture(under=(paper.line_at(0.8, 0.92, BLACK, upright=False),)),
    "underlined": picture(lined(one(0.3, 0.5), "b", 0.12)),
    "underlined by a program": clean(lined(one(0.5, 0.6, 0), "b", 0.12)),
    "book gutter": picture(over=(paper.gutter,)),
    "dark strip at an edge": picture(over=(paper.strip((0.15, 0.1, 0.08)),)),
    "desk at an edge": picture(over=(paper.strip(paper.WOOD, 0.1),)),
}

LIGHT: dict[str, Kind] = {
    "soft gradient": picture(over=(paper.falling_light(0.7),)),
    "light falls to 0.5": picture(over=(paper.falling_light(0.5),)),
    "light falls to 0.3": picture(over=(paper.falling_light(0.3),)),
    "shadow 0.5, pen": picture(over=(shadow(0.5, 0.35),)),
    "shadow 0.6, ballpoint": picture(tool=BALLPOINT, over=(shadow(0.6, 0.35),)),
    "shadow 0.7, pencil": picture(tool=PENCIL, over=(shadow(0.7, 0.35),)),
    "hard shadow 0.5, pen": picture(over=(shadow(0.5, 0.015),)),
    "hard shadow 0.6, ballpoint": picture(tool=BALLPOINT, over=(shadow(0.6, 0.015),)),
    "shadow of a hand": picture(over=(paper.hand_shadow(0.55),)),
    "vignette": picture(over=(paper.vignette(0.4),)),
    "glare": picture(over=(paper.glare(0.8),)),
}

SURROUNDINGS: dict[str, Kind] = {
    "sheet on a dark desk": picture(over=(DESK,)),
    "sheet on a dark desk, turned": picture(over=(turned(10, 0.7), laid_on(paper.WOOD))),
    "sheet on a pale desk": picture(colour=WHITE, over=(turned(5, 0.75), laid_on((0.62, 0.5, 0.38)))),
    "sticky note on a desk": picture(
        tool=BALLPOINT, colour=paper.YELLOW, shapes=((800, 800),), over=(turned(8, 0.6), laid_on((0.55, 0.45, 0.36)))
    ),
    "receipt": picture(tool=BALLPOINT, colour=GREY, shapes=((1400, 420),)),
    "receipt on a desk": picture(
        one(0.5, 0.7), BALLPOINT, GREY, shapes=((1200, 400),), over=(padded(0.12), laid_on(paper.WOOD))
    ),
    "scan with black borders": picture(colour=WHITE, over=(turned(2, 0.92), laid_on(BLACK, 0, 0))),
    "photograph turned a little": picture(over=(turned(8, 1.25), laid_on(CREAM, 0, 0))),
    "figure with a white margin": mnist(
        saved(".png"), over=(cameras.colour_map("viridis"), cameras.enlarged(10), padded(0.13, (1, 1, 1)))
    ),
    "figure with axes": mnist(
        saved(".png"),
        over=(
            cameras.chosen([cameras.colour_map(name) for name in ("viridis", "gray", "gray_r")]),
            cameras.enlarged(10),
            cameras.axes,
        ),
    ),
    "screenshot of a window": clean(camera=(cameras.window,)),
    "card on nothing": clean(camera=(padded(0.15),)),
    "turned page with transparent corners": clean(one(0.55, 0.7, 0.03), camera=(turned(12),)),
    "rounded corners": clean(camera=(cameras.rounded,)),
    "ink on nothing": clean(camera=(cameras.ink_only,)),
    "picture of a screen": picture(one(0.4, 0.7), BRUSH, WHITE, over=(cameras.screen,)),
    "picture of a dark screen": picture(one(0.4, 0.7), BRUSH._replace(colour=WHITE), BLACK, over=(cameras.screen,)),
    "form box": clean(lined(one(0.5, 0.6, 0), "tblr", 0.2, reach=0)),
    "form box touched by the digit": clean(lined(one(0.5, 0.6, 0), "tblr", -0.01, reach=0)),
    "form box, left and bottom line": clean(lined(one(0.5, 0.6, 0), "bl", 0.2)),
    "frame at the image's edge": clean(over=(cameras.framed,)),
    "form box, photographed": picture(lined(one(0.3, 0.4), "tblr", 0.2, reach=0), BALLPOINT),
    "form row with one digit": picture(form_row(1, 1)),
}

INK: dict[str, Kind] = {
    name: clean(tool=BRUSH._replace(colour=ink), colour=ground)
    for name, (ink, ground) in {
        "orange on cyan": ((1.0, 0.55, 0.0), (0.0, 0.74, 0.83)),
        "red on green": ((0.87, 0.24, 0.24), (0.24, 0.5, 0.24)),
        "blue on red": ((0.2, 0.3, 0.95), (0.83, 0.2, 0.2)),
        "magenta on grey": ((0.85, 0.3, 0.75), (0.5, 0.5, 0.5)),
        "yellow highlighter on white": ((1.0, 1.0, 0.25), (1.0, 1.0, 1.0)),
        "green on brown": ((0.25, 0.55, 0.3), (0.6, 0.4, 0.3)),
        "white on pale blue": ((1.0, 1.0, 1.0), (0.6, 0.8, 0.95)),
        "red on white": ((0.85, 0.1, 0.1), (1.0, 1.0, 1.0)),
    }.items()
}

STROKES: dict[str, Kind] = {name: clean(in_strokes(name), PEN) for name in layouts.IN_STROKES}
STROKES |= {
    "scratch, upright": clean(cut(LARGE, upright=True)),
    "scratch, level": clean(cut(LARGE, upright=False)),
}

FILES: dict[str, Kind] = {
    "JPEG of quality 8": picture(save=jpeg(8, 8)),
    "EXIF orientation": picture(save=image_files.oriented),
    "JPEG of 50 megapixels": picture(shapes=((768, 1020),), camera=(), save=image_files.huge(8160)),
    "CMYK JPEG": picture(save=jpeg(mode="CMYK")),
    "grey JPEG": picture(save=jpeg(mode="L")),
    "WebP": picture(save=saved(".webp", quality=80)),
    "BMP": picture(save=saved(".bmp")),
    "PGM": picture(save=saved(".pgm", "L")),
    "palette PNG": clean(save=image_files.palette),
    "1-bit PNG": clean(save=image_files.one_bit),
    "grey and alpha PNG": clean(save=saved(".png", "LA")),
    "RGBA PNG": clean(save=saved(".png", "RGBA")),
    "16-bit PNG": picture(save=image_files.deep(65535, ".png")),
    "16-bit TIFF": picture(save=image_files.deep(65535, ".tif")),
    "12 of 16 bits": picture(save=image_files.deep(4095, ".png")),
    "float TIFF, 0 to 1": mnist(image_files.floats(1.0)),
    "float TIFF, 0 to 1.02": mnist(image_files.floats(1.02)),
    "float TIFF, 0 to 3": mnist(image_files.floats(3.0)),
    "float TIFF, standardised": mnist(image_files.floats(None)),
    "GIF": clean(save=saved(".gif")),
    "animated GIF, first frame empty": clean(save=image_files.late_gif),
    "28×28, light on dark": mnist(),
    "28×28, dark on light": mnist(inverted=True),
    "28×28, JPEG": mnist(jpeg(mode="L")),
    "8 to 12 pixels": clean(one(0.75, 0.85, 0.02), camera=(cameras.shrunk(8, 12),)),
    "5×5 pixels": mnist(camera=(cameras.shrunk(5, 5),)),
}
if features.check("avif"):
    FILES["AVIF"] = picture(save=saved(".avif", quality=70))

SEVERAL: dict[str, Kind] = {
    "row": picture(ROW),
    "row, ballpoint": picture(ROW, BALLPOINT),
    "row, pencil": picture(ROW, PENCIL),
    "row, drawn by a program": clean(FEW, shapes=((300, 800),)),
    "row, spaced wide": picture(lines_of((1, 1), (2, 4), gap=1.0)),
    "row, different sizes": picture(lines_of((1, 1), (2, 5), vary=0.35)),
    "row, slanted": picture(lines_of((1, 1), (3, 6), slope=0.22)),
    "printed row": picture(pages.printed(2, 8), colour=WHITE, shapes=((300, 900),)),
    "column": picture(lines_of((2, 4), (1, 1))),
    "one above the other": clean(lines_of((2, 2), (1, 1), gap=0.15), shapes=((740, 380),)),
    "two rows": picture(lines_of((2, 2), (2, 4), gap=0.5)),
    "exponent": picture(pages.exponent),
    "touching pair": picture(pages.touching),
    "touching pair, drawn by a program": clean(pages.touching, shapes=((400, 500),)),
    "telephone number": picture(pages.telephone_number, BALLPOINT, shapes=((400, 1000),)),
    "form row": picture(form_row(3, 8), BALLPOINT),
    "form row, drawn by a program": clean(form_row(2, 6), FELT, shapes=((300, 900),)),
    "row on ruled paper": picture(FEW, under=(ruled(PALE_BLUE),)),
    "row on graph paper": picture(FEW, under=(ruled(PALE_BLUE, **GRAPH),)),
    "row in a shadow": picture(FEW, over=(shadow(0.5, 0.35),)),
    "row, light falls to 0.4": picture(FEW, over=(paper.falling_light(0.4),)),
    "row on a whiteboard": picture(FEW, FELT, WHITE, over=(paper.falling_light(0.8), paper.glare(0.7))),
    "row on a blackboard": picture(FEW, CHALK, paper.BOARD, under=(paper.smudged,)),
    "row on a sheet on a desk": picture(FEW, over=(DESK,)),
    "grid of 3×3 images": mnist(layout=grid_of_mnist(3), side=84),
    "grid of 10×10 images": mnist(layout=grid_of_mnist(10), side=280),
}

NONE: dict[str, Kind] = {
    "blank paper": picture(pages.nothing),
    "blank paper in a shadow": picture(pages.nothing, over=(shadow(0.5, 0.1),)),
    "blank ruled paper": picture(pages.nothing, under=(ruled(DARK_BLUE),)),
    "blank graph paper": picture(pages.nothing, under=(ruled(DARK_BLUE, **GRAPH),)),
    "blank dotted paper": picture(pages.nothing, under=(paper.dotted((0.3, 0.3, 0.35)),)),
    "blank sheet on a desk": picture(pages.nothing, over=(DESK,)),
    "typed text": picture(pages.typed, colour=WHITE),
    "crumbs": picture(pages.nothing, under=(paper.crumbs(30, 120),)),
    "3 % salt and pepper": clean(pages.nothing, over=(cameras.impulses(0.03),)),
    "equal squares": clean(pages.squares(20, 80)),
    "stripes": clean(pages.stripes),
    "letter": picture(pages.letter),
    "scribble": picture(pages.scribble),
    "face": picture(pages.face),
    "empty form row": picture(form_row(3, 8, fill=0)),
    "texture": picture(pages.nothing, under=(pages.texture,)),
    "noise": clean(pages.nothing, over=(pages.noise,)),
}

KINDS = PAPERS | LIGHT | SURROUNDINGS | INK | STROKES | FILES | SEVERAL | NONE

# Only to fit with. The fitted half has too little of what lies around others, and of digits that differ much in size.
ONLY_FITTED: dict[str, Kind] = {
    "shapes in a shape": picture(pages.shapes),
    "shapes in a shape, drawn by a program": clean(pages.shapes),
    "digit in a ring": picture(layouts.ringed(one(0.25, 0.35))),
    "digits in boxes": picture(pages.boxed, BALLPOINT, WHITE, shapes=((500, 900),)),
    "exponent, pencil": picture(pages.exponent, PENCIL),
    "exponent, ruled paper": picture(pages.exponent, BALLPOINT, under=(ruled(PALE_BLUE),)),
    "exponent, drawn by a program": clean(pages.exponent, shapes=((400, 500),)),
}


def family(kind: str) -> str:
    """The name up to its first comma, which variants of a kind have in common."""
    return kind.partition(",")[0]


def is_fitted(kind: str) -> bool:
    """Whether `benchmarks.release.reading_weights` fits with pictures of this kind; those of the others only measure.

    By the parity of a hash of the family, so that nobody chooses.
    """
    return zlib.crc32(family(kind).encode()) % 2 == 0
