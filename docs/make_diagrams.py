"""Write the two diagrams of the documentation as SVG: `python docs/make_diagrams.py`.

Boxes and arrows are placed by hand on a grid, so that the pictures need no tool and a change is a
line of this file. `tests/docs/test_links.py` checks that the files in docs/images are the ones that
this script writes.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "images"
BLUE, GREEN, ORANGE, GREY, WHITE = "#dbe8fb", "#dcf3df", "#fdebd0", "#eeeeee", "#ffffff"


class Drawing:
    """An SVG picture of boxes, arrows and texts; coordinates are pixels from the top left."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = (width, height)
        self._parts = [
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
            ' markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="{WHITE}"/>',
        ]

    def text(self, x: float, y: float, words: str, *, size: int = 13, anchor: str = "middle",
             bold: bool = False, colour: str = "#222") -> None:  # fmt: skip
        """Add one line of text whose baseline is at y."""
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
            f"{weight}>{escape(words)}</text>"
        )

    def box(self, x: int, y: int, width: int, height: int, title: str, *lines: str,
            fill: str = BLUE) -> None:  # fmt: skip
        """Add a box with a bold title and lines of text under it."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}"'
            ' stroke="#667"/>'
        )
        first = y + height / 2 - 8 * len(lines) + 5
        self.text(x + width / 2, first, title, bold=True)
        for number, line in enumerate(lines, 1):
            self.text(x + width / 2, first + 16 * number, line, size=12)

    def arrow(self, x1: int, y1: int, x2: int, y2: int, words: str = "") -> None:
        """Add an arrow, with words at its middle."""
        self._parts.append(
            f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#444" stroke-width="1.5" fill="none"'
            ' marker-end="url(#head)"/>'
        )
        if words:
            self.text((x1 + x2) / 2, (y1 + y2) / 2 - 6, words, size=12)

    def svg(self) -> str:
        """Return the file's text."""
        width, height = self._size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" font-family="Helvetica,Arial,sans-serif">\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def layers() -> Drawing:
    """Draw the packages; an arrow is an import, and none goes up."""
    d = Drawing(820, 480, "Layers of serverless_mpi: imports go down only")
    d.box(20, 20, 270, 50, "your program", "from serverless_mpi import MPI", fill=GREY)
    d.box(310, 20, 270, 50, "inference, futures", "applications of the MPI API", fill=GREY)
    d.box(600, 20, 200, 50, "smpirun, smpi", "the command lines", fill=GREY)
    d.box(20, 110, 560, 60, "api", "one file per MPI object: communicators, datatypes, requests")
    d.box(600, 110, 200, 60, "launch, deploy", "start ranks; make the stack", fill=ORANGE)
    d.box(20, 210, 560, 60, "runtime", "the clock, the lock, the threads: drives core and channel")
    d.box(600, 210, 200, 60, "simulation", "collectives on a model", fill=ORANGE)
    d.box(20, 310, 380, 60, "channels", "hybrid, queue, object, direct, memory: put and get frames")
    d.box(420, 310, 380, 60, "collectives", "one generator per algorithm, its cost", fill=GREEN)
    d.box(20, 410, 185, 50, "aws", "client of SQS, SNS, S3", fill=ORANGE)
    d.box(225, 410, 575, 50, "core", "frames, matching, order, duplicates", fill=GREEN)
    for x, top, bottom in ((155, 70, 109), (445, 70, 109), (700, 70, 109), (300, 170, 209),
                           (700, 170, 209), (210, 270, 309), (500, 270, 309), (700, 270, 309),
                           (112, 370, 409), (312, 370, 409), (610, 370, 409)):  # fmt: skip
        d.arrow(x, top, x, bottom)
    return d


def message() -> Drawing:
    """Draw the way of one message over the default channel."""
    d = Drawing(820, 470, "The way of a message from rank 0 to rank 1 over the hybrid channel")
    d.text(150, 24, "rank 0: comm.send(data, 1)", bold=True)
    d.text(410, 24, "AWS, or its emulator", bold=True)
    d.text(670, 24, "rank 1: comm.recv(source=0)", bold=True)
    d.box(20, 40, 260, 60, "serialize", "pickle 5; arrays are not copied")
    d.box(20, 130, 260, 76, "cut into frames", "sequence number per destination,", "keyed tag over header and body",
          fill=GREEN)  # fmt: skip
    d.box(20, 236, 260, 60, "queue of outgoing frames", "a burst fills batches")
    d.box(20, 326, 260, 60, "channel: put", "one request for up to 10 frames", fill=ORANGE)
    d.box(330, 240, 160, 60, "SNS, SQS", "small frames", fill=GREY)
    d.box(330, 340, 160, 60, "S3", "large frames", fill=GREY)
    d.box(
        540,
        326,
        260,
        60,
        "channel: get, then ack",
        "a long poll; the frame is deleted",
        fill=ORANGE,
    )
    d.box(540, 236, 260, 60, "verify the tag", "a bad frame is counted and dropped", fill=GREEN)
    d.box(540, 130, 260, 76, "restore order, match", "drop duplicates, reorder, then match", "source, tag, communicator",
          fill=GREEN)  # fmt: skip
    d.box(540, 40, 260, 60, "return the object", "or fill the posted receive buffer")
    for x1, y1, x2, y2 in ((150, 100, 150, 129), (150, 206, 150, 235), (150, 296, 150, 325),
                           (280, 346, 329, 285), (280, 366, 329, 372), (490, 280, 539, 340),
                           (490, 372, 539, 366), (670, 326, 670, 297), (670, 236, 670, 207),
                           (670, 130, 670, 101)):  # fmt: skip
        d.arrow(x1, y1, x2, y2)
    d.text(
        410,
        430,
        "The services may reorder, duplicate and delay frames. Order, matching and",
        size=12,
    )
    d.text(
        410,
        448,
        "authentication happen in the green boxes, above the channel, on every channel alike.",
        size=12,
    )
    return d


PICTURES = {"layers.svg": layers, "message.svg": message}


def main() -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
