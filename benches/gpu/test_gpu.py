"""Tests of the script's own arithmetic: python3 -m unittest discover -s benches/gpu."""

import io
import math
import struct
import unittest
import zlib

import make_models
import shapes
from cells import COMPILED, DARKROOM, DIFFUSERS, summary
from files import ALIKE_DB, PNG_SIGNATURE, png_pixels, psnr
from run import Model
from table import Plan, markdown, written

MODELS = [Model("sd15", "SD 1.5", "", 512, 20, [1, 8]), Model("sdxl", "SDXL", "", 1024, 20, [1])]


def plan(device="cuda", sizes="full"):
    return Plan(device, sizes, ["f32", "f16"], MODELS, "f16")


def met(row, mine, eager=None, compiled=None, **changes):
    cells = {DARKROOM: {"value": mine}, DIFFUSERS: {"value": eager}, COMPILED: {"value": compiled}}
    return plan(**changes).goal(row, cells)[1]


class Goals(unittest.TestCase):
    def test_times_are_held_against_the_same_run(self):
        self.assertIs(met("sd15.b1.image", 0.9, 1.0, 0.82), True)
        self.assertIs(met("sd15.b1.image", 0.91, 1.0, 1.0), False)
        self.assertIs(met("sd15.b1.image", 0.9, 1.0, 0.81), False)
        self.assertIs(met("sd15.b8.image", 2.0, 1.0, 2.0), True)
        self.assertIs(met("sd15.b8.image", 2.1, 9.0, 2.0), False)
        self.assertIs(met("sdxl.b1.image", 1.01, 1.0), False)
        self.assertIs(met("sd15.ready", 3.0), True)
        self.assertIs(met("sd15.ready", 3.1), False)
        self.assertIs(met("sd15.memory", 100, 99), False)

    def test_a_missing_figure_meets_nothing(self):
        self.assertIsNone(met("sd15.b1.image", 0.5, 1.0))
        self.assertIs(met("sd15.b1.image", 2.0, 1.0), False)
        self.assertIsNone(met("sd15.b8.image", None, 1.0, 1.0))

    def test_speed_has_goals_at_full_size_on_a_gpu_alone(self):
        self.assertEqual(plan(device="cpu").goal("sd15.ready", {DARKROOM: {"value": 9.0}}), ("", None))
        self.assertEqual(plan(sizes="tiny").goal("sd15.ready", {DARKROOM: {"value": 9.0}}), ("", None))

    def test_likeness_is_of_each_case_in_f32_and_of_the_mean_beside_torchs_else(self):
        mine = summary({("a", "1"): 44.0, ("b", "1"): 60.0})
        self.assertIs(plan().goal("pictures.f32", {DARKROOM: mine})[1], False)
        self.assertIsNone(plan().goal("pictures.f16", {DARKROOM: mine})[1])
        for torchs, wanted in ((45.0, True), (45.1, False)):
            theirs = summary({("a", "1"): torchs, ("c", "1"): 90.0})
            self.assertIs(plan().goal("pictures.f16", {DARKROOM: mine, DIFFUSERS: theirs})[1], wanted)
            row = markdown(plan(), {"pictures.f16": {DARKROOM: mine, DIFFUSERS: theirs}})
            self.assertEqual("**no**: 1.1 dB behind torch's (a)" in row, not wanted)
        low = summary({("a", "1"): 34.9})
        self.assertIs(plan().goal("networks.f16", {DARKROOM: low})[1], False)

    def test_half_of_the_cases_are_not_all(self):
        mine = {**summary({("a", "1"): 60.0}), "unfinished": True}
        self.assertIsNone(plan().goal("pictures.f32", {DARKROOM: mine})[1])
        self.assertIn("unfinished", written("pictures.f32", mine))

    def test_a_reason_stays_in_its_cell(self):
        table = markdown(plan(), {"jobs": {DARKROOM: {"missing": "a | b\nc"}}})
        self.assertIn("| a \\| b c |", table)
        self.assertEqual(len(table.splitlines()), 2 + len(plan().rows))


def png(rows):
    """A PNG of one-row filters as they are given: [(filter, bytes)]."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(rows[0][1]) // 3, len(rows), 8, 2, 0, 0, 0)
    body = zlib.compress(b"".join(bytes([kind]) + data for kind, data in rows))
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", body[:5]) + chunk(b"IDAT", body[5:]) + chunk(b"IEND", b"")


class Files(unittest.TestCase):
    def test_every_filter_of_a_png_is_undone(self):
        rows = [(0, bytes([10, 20, 30, 40, 50, 60]))]
        rows += [(kind, bytes([1, 2, 3, 250, 5, 6])) for kind in (1, 2, 3, 4)]
        wanted = [10, 20, 30, 40, 50, 60]  # none
        wanted += [1, 2, 3, 251, 7, 9]  # left
        wanted += [2, 4, 6, 245, 12, 15]  # above
        wanted += [2, 4, 6, 117, 13, 16]  # the mean of both
        wanted += [3, 6, 9, 111, 18, 22]  # Paeth's guess: 117, 13, 16
        self.assertEqual(list(png_pixels(png(rows))), wanted)

    def test_likeness_is_the_peak_over_the_noise(self):
        self.assertAlmostEqual(psnr(bytes(100), bytes([1] * 100)), 20 * math.log10(255))
        self.assertEqual(psnr(b"abc", b"abc"), ALIKE_DB)


class Models(unittest.TestCase):
    def test_the_published_sizes(self):
        def millions(name, component):
            counts = [math.prod(shape) for _, shape in make_models.tensors(make_models.published(name), component)]
            return round(sum(counts) / 1e6, 1)

        found = [millions("sd15", component) for component in ("text_encoder", "unet", "vae")]
        self.assertEqual(found, [123.1, 859.5, 83.7])
        found = [millions("sdxl", component) for component in ("text_encoder", "text_encoder_2", "unet", "vae")]
        self.assertEqual(found, [123.1, 694.7, 2567.5, 83.7])

    def test_weights_are_of_their_layers_scale(self):
        file, values = io.BytesIO(), make_models.Values("test")
        values.write(file, "a.weight", (4, 25))
        values.write(file, "norm.weight", (3,))
        values.write(file, "norm.bias", (2,))
        found = struct.unpack("<105e", file.getvalue())
        self.assertLessEqual(max(map(abs, found[:100])), 0.2)
        self.assertGreater(max(found[:100]), 0.1)
        self.assertEqual(found[100:], (1, 1, 1, 0, 0))
        self.assertEqual(list(shapes.linear("x", 2, 3)), [("x.weight", (3, 2)), ("x.bias", (3,))])


if __name__ == "__main__":
    unittest.main()
