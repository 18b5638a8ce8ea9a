"""Write a folder of images, one folder a class: patches of photographs that need no download."""

from pathlib import Path

from PIL import Image

from lti.data.photos import Photos

PER_CLASS = 300


def main() -> None:
    """Write ``images/<class>/<number>.png``."""
    photos = Photos()
    samples, names = photos.load("auxiliary"), photos.class_names
    written = dict.fromkeys(names, 0)
    for pixels, label in zip(samples.value, samples.label, strict=True):
        name = names[label]
        if written[name] < PER_CLASS:
            folder = Path("images", name)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{written[name]:03}.png")
            written[name] += 1
    print(f"images: {sum(written.values()):,} of {len(names)} classes")


if __name__ == "__main__":
    main()
