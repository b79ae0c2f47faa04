"""Ids of procedural shapes with a quarter of all captions held out: what the released generator was trained on.

    python benchmarks/held_out_captions.py --count 4000 > ids.txt
    python jobs/preprocess.py --source shapes --ids ids.txt --resolution 64 --views 8 --view-size 64
        --num-surface 4096 --num-sharp 512 --num-queries 8192 --num-shards 64 --output out/shapes4000
    python jobs/train_cvq.py --data out/demo/shapes --output out/runs --steps 3000     # the shapes of make demo
    python jobs/train_car.py --data out/shapes4000 --tokenizer out/runs/cvq-... --output out/runs --steps 5500
        --set drop_both=0.1,drop_text=0.1,drop_image=0.35,drop_phrases=0.1,ema_decay=0.998
    python jobs/evaluate.py --model out/runs/car-... --data out/shapes4000 --resolution 64 --coarse 16
        --num-detailed 8 --num-compared 64 --num-image-samples 128 --guidance-grid 0,1,2,4 --output out/car.json
    python -m pipelines.release out/runs/car-... --evaluation out/car.json --output out/g3pt-nano-car

The universe has 404 captions: a few thousand random shapes use them all, and no prompt would be absent from training. A
caption is held out if its sha256 is a multiple of 4 (111 of the 404); of the others the shapes with the smallest
sha256(id) are taken.
"""

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from g3pt.data.records import id_hash
from g3pt.shapes import make_shape, shape_ids


def held_out(caption: str) -> bool:
    """True if no training object may have this caption."""
    return int(hashlib.sha256(caption.encode()).hexdigest(), 16) % 4 == 0


def kept_ids(count: int, seed: int = 0) -> list[str]:
    """The first `count` ids by sha256 whose caption, with this seed, is not held out."""
    found: list[str] = []
    for shape_id in sorted(shape_ids(), key=id_hash):
        if len(found) == count:
            break
        if not held_out(make_shape(shape_id, seed).caption):
            found.append(shape_id)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4000, help="ids to print")
    print("\n".join(kept_ids(parser.parse_args().count)))


if __name__ == "__main__":
    main()
