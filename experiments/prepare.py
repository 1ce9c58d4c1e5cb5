"""Downloads a tfds image set and writes it as array_record files, without tensorflow.

    python -m experiments.prepare mnist
    python -m experiments.prepare oxford_flowers102 --dir /data/tfds

It is `tfds.builder(name).download_and_prepare(file_format="array_record")`, with the two things for which tfds reaches for
tensorflow done otherwise: an image is encoded by Pillow, and a file is opened by Python.
"""

import contextlib
import io
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from experiments import UserError, configs, run, screen


def prepare(builder: Any) -> None:
    """Downloads and writes what a tfds builder describes, into its `data_dir`."""
    with _without_tensorflow(builder):
        try:
            builder.download_and_prepare(file_format="array_record")
        except ImportError as error:
            raise UserError(
                f"tfds needs a package to prepare {builder.name!r}: {error}. Install it, or prepare the set where it is "
                "installed; reading the files afterwards does not need it"
            ) from error


@contextlib.contextmanager
def _without_tensorflow(builder: Any) -> Iterator[None]:
    from tensorflow_datasets.core.features import image_feature

    encoder, module = image_feature._ImageEncoder, sys.modules[type(builder).__module__]

    def encode(self, image):
        buffer = io.BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, self.encoding_format)
        return buffer.getvalue()

    kept = encoder._encode_image, vars(module).get("tf")
    encoder._encode_image = encode
    if kept[1] is not None:
        module.tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open)))
    try:
        yield
    finally:
        encoder._encode_image = kept[0]
        if kept[1] is not None:
            module.tf = kept[1]


def main(argv: Sequence[str] | None = None) -> None:
    import tensorflow_datasets as tfds

    parser = configs.Parser(
        prog="python -m experiments.prepare", description="Downloads a tfds image set, without tensorflow."
    )
    parser.add_argument("name", help="such as mnist, fashion_mnist, oxford_flowers102, cifar10")
    parser.add_argument("--dir", metavar="DIR", help="where data sets are kept (default: ~/tensorflow_datasets)")
    args = parser.parse_args(argv)
    try:
        builder = tfds.builder(args.name, data_dir=args.dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(f"tfds knows no data set {args.name!r}{configs.suggest(args.name, known)}") from error
    prepare(builder)
    screen.say(f"{args.name} is in {builder.data_path}")


if __name__ == "__main__":
    run(main)
