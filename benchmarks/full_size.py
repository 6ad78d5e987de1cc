"""The full 512-pixel network of the FFHQ checkpoints, with random weights: what it costs to import, load and use.

    python benchmarks/full_size.py checkpoint out/full.safetensors  # for: headlift reconstruct PHOTO --weights FILE
    python benchmarks/full_size.py import                           # read an official-structure .pkl of full size

Shapes are those of the published networks, numbers are random: the pictures are noise, the costs are real.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

FFHQ512_NUMBERS = 31_493_160
"""Numbers in the published generator's tensors, buffers included, added up from its names and shapes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    checkpoint = verbs.add_parser("checkpoint", help="write a random checkpoint of the exact shape")
    checkpoint.add_argument("out", type=Path)
    checkpoint.add_argument("--half", action="store_true", help="store large tensors in half precision")
    checkpoint.add_argument("--seed", type=int, default=0)
    imported = verbs.add_parser("import", help="write an official-structure pickle, import it, print time and memory")
    imported.add_argument("--keep", type=Path, help="folder for the files (a temporary one otherwise)")
    inside = verbs.add_parser("measure", help="import one pickle in this process and print what it took")
    inside.add_argument("pickle", type=Path)
    inside.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "checkpoint":
        write_checkpoint(arguments.out, arguments.half, arguments.seed)
    elif arguments.verb == "import":
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            write_and_import(arguments.keep)
        else:
            with tempfile.TemporaryDirectory() as folder:
                write_and_import(Path(folder))
    else:
        measure_import(arguments.pickle, arguments.out)


def write_checkpoint(path: Path, half: bool, seed: int) -> None:
    """A random generator of the published 512-pixel FFHQ shape."""
    from headlift.eg3d.checkpoint import save_checkpoint
    from headlift.eg3d.generator import Generator
    from headlift.eg3d.spec import GeneratorSpec

    torch.manual_seed(seed)
    generator = Generator(GeneratorSpec())
    numbers = sum(tensor.numel() for tensor in generator.state_dict().values())
    assert numbers == FFHQ512_NUMBERS, numbers
    save_checkpoint(path, generator, {"licence": "none needed: random numbers"}, half)
    print(f"{path}: {numbers:,} numbers, {path.stat().st_size / 2**20:.0f} MiB")


def write_and_import(folder: Path) -> None:
    """An official-structure snapshot (G, D, G_ema) of full size is written here and imported by another process."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
    from official_files import official_file

    from headlift.eg3d.discriminator import Discriminator
    from headlift.eg3d.generator import Generator
    from headlift.eg3d.spec import DiscriminatorSpec, GeneratorSpec

    torch.manual_seed(0)
    source = folder / "full.pkl"
    source.write_bytes(official_file(Generator(GeneratorSpec()), Discriminator(DiscriminatorSpec())))
    print(f"{source.name}: {source.stat().st_size / 2**20:.0f} MiB")
    subprocess.run([sys.executable, __file__, "measure", str(source), str(folder / "full.safetensors")], check=True)


def measure_import(source: Path, target: Path) -> None:
    """Import in this process; its peak memory is then the import's."""
    from headlift.evaluate.cost import peak_memory
    from headlift.weights import import_official, load_generator

    before = peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    done = import_official(source, target, overwrite=True)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"import: {seconds:.1f} s ({cpu:.1f} s of CPU), peak {peak_memory():.2f} GiB ({before:.2f} before it), "
        f"{done.parameters:,} parameters, {target.stat().st_size / 2**20:.0f} MiB written"
    )
    start, cpu = time.perf_counter(), time.process_time()
    load_generator(str(target), "cpu")
    print(f"load:   {time.perf_counter() - start:.1f} s ({time.process_time() - cpu:.1f} s of CPU)")


if __name__ == "__main__":
    main()
