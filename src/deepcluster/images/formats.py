"""Which files are pictures: by their name, else by their first bytes; and what to do about others.

What Pillow reads is an image. Kinds that hold pictures and are not read (:data:`CURES`) are counted
where they are passed over, with what to do about them. HEIC is read where pillow-heif is installed.
"""

from __future__ import annotations

import stat
from functools import cache
from pathlib import Path

from PIL import Image

# Pillow only recognises these and cannot read them, or (EPS) hands them to another program.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# Formats that no text begins like, of which files are read under any other name as well.
SIGNED = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF")

HEIF_BEGINS = {b"ftyp" + kind for kind in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")}
HEIF_CURE = "pip install 'deepcluster[heif]'"

_RAW = "export them as JPEG or 16-bit TIFF"
_SLIDE = "cut them into tiles of TIFF or PNG first (OpenSlide, QuPath)"
_VOLUME = "save their planes as 16-bit PNG or TIFF, or as one .npy array"
_FILM = "save frames as JPEG or PNG first"
_PACKED = "unpack them first"
# Kinds of files that hold pictures which are not read, and what to do about them.
CURES: dict[str, str] = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIF_CURE),
    **dict.fromkeys(
        [
            ".nef",
            ".nrw",
            ".cr2",
            ".cr3",
            ".crw",
            ".dng",
            ".arw",
            ".srf",
            ".sr2",
            ".orf",
            ".rw2",
            ".raf",
            ".pef",
            ".srw",
            ".x3f",
            ".rwl",
            ".3fr",
            ".iiq",
            ".erf",
            ".kdc",
            ".dcr",
            ".mrw",
            ".gpr",
        ],
        _RAW,
    ),
    ".jxl": "save them as PNG or JPEG first",
    ".svg": "save them as PNG first",
    ".pdf": "save their pages as PNG first",
    ".ai": "save them as PNG first",
    ".djvu": "save their pages as PNG first",
    ".xcf": "export them as PNG",
    ".exr": "save them as 16-bit or float TIFF first",
    ".raw": _RAW,
    **dict.fromkeys((".dcm", ".dicom", ".ima"), _VOLUME),
    **dict.fromkeys(
        [
            ".nii",
            ".nrrd",
            ".mha",
            ".mhd",
            ".mrc",
            ".mat",
            ".h5",
            ".hdf5",
            ".zarr",
            ".fits",
            ".fit",
            ".fts",
            ".nc",
        ],
        _VOLUME,
    ),
    **dict.fromkeys(
        [".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".vsi", ".isyntax"], _SLIDE
    ),
    **dict.fromkeys(
        [".czi", ".lif", ".nd2", ".oib", ".oif", ".oir", ".ims", ".zvi", ".dv", ".sld"], _VOLUME
    ),
    **dict.fromkeys(
        [
            ".mp4",
            ".mov",
            ".avi",
            ".mkv",
            ".mts",
            ".m2ts",
            ".m4v",
            ".webm",
            ".wmv",
            ".mpg",
            ".mpeg",
            ".3gp",
        ],
        _FILM,
    ),
    **dict.fromkeys([".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"], _PACKED),
    ".npy": "give one by itself, as a source, or stack them into one",
    ".npz": "give one by itself, as a source, or stack them into one",
}
# No pictures, and not worth opening to see. (A copy that a program keeps is none of the images.)
_TEXTS = frozenset(
    [
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".md",
        ".rst",
        ".html",
        ".htm",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".log",
        ".py",
        ".ipynb",
        ".js",
        ".css",
        ".sh",
        ".doc",
        ".docx",
        ".xls",
        ".xlsx",
        ".odt",
        ".ods",
        ".ppt",
        ".pptx",
        ".db",
        ".sqlite",
        ".pt",
        ".pth",
        ".safetensors",
        ".onnx",
        ".pkl",
        ".pickle",
        ".bin",
        ".aae",
        ".xmp",
        ".thm",
        ".lnk",
        ".url",
        ".exe",
        ".dll",
        ".mp3",
        ".wav",
        ".m4a",
        ".bak",
        ".orig",
        ".old",
        ".tmp",
        ".temp",
        ".part",
        ".crdownload",
        ".download",
        ".swp",
    ]
)


def kind_of(path: Path) -> str:
    """``image``, or what a file is by its extension."""
    suffix = path.suffix.lower()
    if suffix in extensions():
        return "image"
    known = suffix == ".parquet" or suffix in CURES or suffix in _TEXTS
    if not known and _begins_as_image(path):
        return "image"  # without an extension, or with a name such as IMG.2024.05.01
    return suffix or "without an extension"


def cure_of(kind: str) -> str:
    """What to do about files of a kind; empty for what holds no picture."""
    if kind == ".parquet":
        return "give them by themselves, as a source"
    if kind == "image beside Parquet files":
        return "give their folder by itself, if they are wanted"
    return CURES.get(kind, "")


@cache
def extensions() -> frozenset[str]:
    """Extensions of the images that are read, or that Pillow at least knows for pictures."""
    know_formats()
    openable = set(Image.OPEN) - (NOT_READ - {"EPS", "WMF"})  # pictures: not read, but listed
    return frozenset(e for e, name in Image.registered_extensions().items() if name in openable)


def _begins_as_image(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return begins_as_image(file.read(16))  # what Pillow looks at
    except OSError:
        return False


@cache
def formats() -> list[str]:
    """Formats that are read, in the order in which they are tried for each image."""
    know_formats()
    first = ["JPEG", "PNG"]
    return first + sorted(set(Image.OPEN) - NOT_READ - set(first))


@cache
def know_formats() -> bool:
    """Load Pillow's formats and, where it is installed, HEIF; says whether it is."""
    Image.init()
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def begins_as_image(head: bytes) -> bool:
    """Whether 16 bytes begin as images of the common formats do."""
    know_formats()
    accepts = (Image.OPEN[name][1] for name in SIGNED if name in Image.OPEN)
    return len(head) == 16 and any(
        accept is not None and accept(head) is True for accept in accepts
    )


def without_text(raw: Path | bytes) -> bytes | None:
    """A PNG without its texts and colour profile; None if it is no PNG, or has none.

    Pillow refuses pictures with much of these (a program's settings, a printer's profile), and with
    damaged ones.
    """
    start = b"\x89PNG\r\n\x1a\n"
    if isinstance(raw, Path):
        if not raw.is_file():
            return None
        with raw.open("rb") as file:
            if file.read(len(start)) != start:
                return None
            data = start + file.read()
    else:
        data = bytes(raw)
    if not data.startswith(start):
        return None
    kept, place, dropped = [start], len(start), False
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            dropped = True
        else:
            kept.append(data[place:end])
        place = end
    return b"".join(kept) if dropped else None


def heif_cure(raw: object) -> str | None:
    """What to say of HEIC under another name; None if it is none, or can be read."""
    if know_formats() or not isinstance(raw, Path | bytes):
        return None
    try:
        if not isinstance(raw, Path):
            head = raw[:12]
        elif raw.is_file():
            with raw.open("rb") as file:
                head = file.read(12)
        else:
            return None
    except OSError:
        return None
    return f"HEIC is not read: {HEIF_CURE}" if head[4:] in HEIF_BEGINS else None
