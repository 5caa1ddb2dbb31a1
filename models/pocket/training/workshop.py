"""What the stages of the training share: the place they work in, and the running of one."""

import hashlib
import json
import math
import os
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPTokenizer

import data
import export
import nets
import text
from catalogue import STYLES

HERE = Path(__file__).resolve().parent
MINUTES = {
    "cpu": {"vae": 22, "decoder": 10, "text": 4, "denoiser": 60},
    "cuda": {"vae": 10, "decoder": 5, "text": 2, "denoiser": 30},
}
CHECKPOINT_SECONDS = 180

# A step that takes longer was held up by something else, such as a stop of the process; no more
# than this is taken from the stage's budget.
STEP_SECONDS = 2
REPORT_SECONDS = 30


class Workshop:
    """What every stage needs: the device, the folders, the data."""

    def __init__(self, options):
        self.options = options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.runs = options.runs
        self.runs.mkdir(parents=True, exist_ok=True)
        self.cache = HERE / ".cache"
        self.minutes = dict(MINUTES[self.device])
        for item in filter(None, options.minutes.split(",")):
            stage, _, minutes = item.partition("=")
            self.minutes[stage] = float(minutes)

        shares = dict.fromkeys(STYLES, 1.0)
        for item in filter(None, options.shares.split(",")):
            style, _, share = item.partition("=")
            shares[style] = float(share)
        self.style_shares = np.array(list(shares.values())) / sum(shares.values())

    def autocast(self):
        if self.device == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def load_data(self):
        self.things = data.objects(self.cache, self.options.objects)
        self.pictures = data.pictures(self.cache, self.things, self.options.views)
        self.views = torch.from_numpy(self.pictures).to(self.device)
        self.colours = torch.from_numpy(data.colour_values()).to(self.device)
        folder = self.runs / "tokenizer"
        if not (folder / "vocab.json").exists():
            exported = export.MODEL / "tokenizer"
            if self.options.warm_start and exported.exists():
                folder = exported
            else:
                text.train_tokenizer(self.things, folder)
        self.tokenizer_folder = folder
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def network(self, make, part, prefix=""):
        """A network, from the exported weights where a warm start is asked for."""
        network = make()
        folder = export.MODEL / part
        if self.options.warm_start and folder.exists():
            file = next(folder.glob("*.safetensors"))
            export.load_weights(network, file, prefix)
            scale = json.loads((folder / "config.json").read_text()).get("scaling_factor")
            if scale is not None:
                network.register_to_config(scaling_factor=scale)
        return network.to(self.device, memory_format=torch.channels_last)

    def vae(self):
        return self.network(nets.vae, "vae")

    def text_encoder(self):
        return self.network(lambda: nets.text_encoder(self.tokenizer), "text_encoder", "text_model.")

    def unet(self):
        return self.network(nets.unet, "unet")


class Run:
    """One stage's training: its clock, its learning rate, its average, its checkpoint."""

    def __init__(self, shop, stage, modules, rate, warmup=200, average=0.999, floor=0.02):
        self.shop, self.stage, self.modules = shop, stage, modules
        self.rate = rate * (shop.options.warm_rate if shop.options.warm_start else 1)
        self.warmup, self.average, self.floor = warmup, average, floor
        self.file = shop.runs / f"{stage}.pt"
        self.budget = shop.minutes[stage] * 60
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
        )
        self.means = [p.detach().clone() for p in self.parameters]
        self.step, self.spent, self.losses = 0, 0.0, []
        if self.file.exists():
            self._load()
        self.saved = self.reported = time.monotonic()
        self.clock = time.monotonic()

    def _load(self):
        state = torch.load(self.file, map_location=self.shop.device, weights_only=True)
        with torch.no_grad():
            for own, saved in zip(self.parameters, state["parameters"]):
                own.copy_(saved)
            for own, saved in zip(self.means, state["means"]):
                own.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent = state["step"], state["spent"]
        print(f"{self.stage}: going on at step {self.step}, {self.spent / 60:.0f} min", flush=True)

    def save(self):
        state = {
            "parameters": [p.detach() for p in self.parameters],
            "means": self.means,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
        }
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.file)
        self.saved = time.monotonic()

    def on(self):
        """Whether the budget still allows a step; keeps the clock and the checkpoints."""
        now = time.monotonic()
        self.spent += min(now - self.clock, STEP_SECONDS)
        self.clock = now
        if self.spent >= self.budget:
            return False
        if now - self.saved > CHECKPOINT_SECONDS:
            self.save()
            self.clock = time.monotonic()
        return True

    def descend(self, loss):
        """One optimizer step down the loss: a warm-up, then a cosine to the budget's end."""
        done = min(1.0, self.spent / self.budget)
        rate = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
        rate *= min(1.0, (self.step + 1) / self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(self.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.means, [p.detach() for p in self.parameters], 1 - keep)
        self.losses.append(loss.detach())
        if time.monotonic() - self.reported > REPORT_SECONDS:
            self.reported = time.monotonic()
            mean = torch.stack(self.losses).mean().item()
            print(
                f"{self.stage}: step {self.step}, {self.spent / 60:.1f} min, loss {mean:.4f}",
                flush=True,
            )
            self.losses = []

    @contextmanager
    def averaged(self):
        """The networks with their moving average, for a look on the way."""
        with torch.no_grad():
            kept = [p.clone() for p in self.parameters]
            for own, mean in zip(self.parameters, self.means):
                own.copy_(mean)
            yield
            for own, value in zip(self.parameters, kept):
                own.copy_(value)
        self.clock = time.monotonic()

    def settle(self):
        """Leave the moving average in the networks, which is what is used afterwards."""
        with torch.no_grad():
            for own, mean in zip(self.parameters, self.means):
                own.copy_(mean)
        for module in self.modules:
            module.eval()


def settled(shop, stage, modules):
    """Put a stage's averaged weights from its checkpoint into the networks, where there is one."""
    file = shop.runs / f"{stage}.pt"
    if file.exists():
        state = torch.load(file, map_location=shop.device, weights_only=True)
        parameters = [p for m in modules for p in m.parameters()]
        with torch.no_grad():
            for own, mean in zip(parameters, state["means"], strict=True):
                own.copy_(mean)
    for module in modules:
        module.requires_grad_(False).eval()
    return modules


def fingerprint(modules, tensors):
    """A short name for weights and data, by which what was computed from them is told stale."""
    parameters = [p for m in modules for p in m.parameters()]
    digest = hashlib.sha256()
    for tensor in [*parameters, *tensors]:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sheet(images, columns):
    """A contact sheet of [n, 3, h, w] pictures in -1..1."""
    images = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    rows = -(-len(images) // columns)
    height, width = images.shape[2:]
    canvas = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        y, x = index // columns * height, index % columns * width
        canvas[y : y + height, x : x + width] = image.transpose(1, 2, 0)
    return Image.fromarray(canvas)
