"""Trains pocket: fetches the data, then goes through its stages, each resumable from runs/.

    python models/pocket/training/train.py                  # everything, on what there is
    python models/pocket/training/train.py --stages denoiser,export --minutes denoiser=60
    python models/pocket/training/train.py --warm-start     # go on from the exported weights

Every stage stops at its budget of minutes and writes a checkpoint every few minutes, so it may
be killed and started again at any time; a stage whose budget is spent is passed over.
"""

import argparse
from pathlib import Path

import torch

import data
import export
from autoencoder import latent_table, train_vae, trained_vae
from decoder import train_decoder
from denoiser import train_denoiser
from language import train_text, trained_text_encoder
from workshop import HERE, Workshop, settled

STAGES = ("vae", "text", "denoiser", "decoder", "export")


def export_model(shop):
    vae = trained_vae(shop)
    latent_table(shop, vae)  # which sets the scaling factor
    unet = settled(shop, "denoiser", [shop.unet()])[0]
    export.export(vae, trained_text_encoder(shop), unet, shop.tokenizer_folder, shop.things, shop.pictures[0])


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="which, separated by commas")
    parser.add_argument("--minutes", default="", help="budgets: vae=20,denoiser=60")
    parser.add_argument("--objects", type=int, help="how many objects; the catalogue's if left out")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="folder of checkpoints")
    parser.add_argument("--warm-start", action="store_true", help="begin from the exported weights")
    parser.add_argument(
        "--warm-rate", type=float, default=1 / 3, help="the learning rate of a warm start, in parts of a cold one's"
    )
    parser.add_argument(
        "--shares", default="", help="how often the denoiser sees a style; 1 unless said: flat=2,noto=3"
    )
    parser.add_argument(
        "--views", type=int, default=1, help="pictures of each object: the second is mirrored and placed elsewhere"
    )
    return parser.parse_args()


def main():
    shop = Workshop(options())
    torch.manual_seed(0)
    work = dict(zip(STAGES, (train_vae, train_text, train_denoiser, train_decoder, export_model)))
    data.fetch(shop.cache)
    shop.load_data()
    for stage in shop.options.stages.split(","):
        if stage not in work:
            raise SystemExit(f"no stage {stage!r}; there are {', '.join(STAGES)}")
        work[stage](shop)


if __name__ == "__main__":
    main()
