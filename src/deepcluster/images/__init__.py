"""What are the images? A source is told, listed and read, and its images are decoded and kept.

Never imports torch. Others use :func:`open_images` and :class:`ImageStore`.
"""

from deepcluster.images.store import ImageStore, open_images, scan_images

__all__ = ["ImageStore", "open_images", "scan_images"]
