"""Tests of the world and of what is said of it: python tests.py (under a minute). That every stage runs: `cargo test --release --workspace --test bundle`."""
import random
import tempfile
import unittest

import numpy as np

import grammar
import portraits
import tokenizer
import world


class World(unittest.TestCase):
    def test_held_out_combinations_are_fifteen_percent_and_never_drawn(self):
        every = [[s, c, p, 0, 0] for s in range(8) for c in range(9) for p in range(4)]
        self.assertEqual(sum(map(world.held_out, every)), int(.15 * len(every)))
        rng = np.random.default_rng(0)
        for _ in range(3000):
            scene = world.random_scene(rng)
            subjects = portraits.portraits_of(scene, rng)
            for m in [*scene[0], *(m for m, _ in subjects)]:
                self.assertFalse(world.held_out(m))

    def test_a_third_of_the_scenes_or_a_little_less_are_pairs(self):
        rng = np.random.default_rng(1)
        share = np.mean([len(world.random_scene(rng)[0]) == 2 for _ in range(4000)])
        self.assertAlmostEqual(share, .3, delta=.03)

    def test_rows_keep_scenes(self):
        rng = np.random.default_rng(2)
        for _ in range(200):
            scene = world.random_scene(rng)
            self.assertEqual(world.unpack(world.pack(scene)), scene)

    def test_no_two_shapes_are_alike_at_the_size_they_have_in_a_pair(self):
        r = 27.0
        y, x = np.mgrid[-45:46, -45:46].astype(np.float32)
        inside = [world.body_distance(shape, x, y, r)[0] < 0 for shape in range(8)]
        for a in range(8):
            for b in range(a):
                self.assertLess((inside[a] & inside[b]).sum() / (inside[a] | inside[b]).sum(), .9, (world.SHAPES[a], world.SHAPES[b]))

    def test_looks_keep_colours_where_lines_are(self):
        import styles
        for colour, (high, low) in {0: (0, 2), 3: (1, 0), 4: (2, 0)}.items():  # red, green, blue: the strongest and the weakest channel
            picture, ((x, y, r),) = world.draw([[[0, colour, 0, 0, 0]], 6], np.random.default_rng(7))
            for look, style in styles.STYLES.items():
                seen = style(picture)
                self.assertLess((seen.min(-1) > 245).mean(), .05, (colour, look))  # the eyes alone are white
                for at in (int(x - r), int(x + r)):
                    line = seen[int(y) - 4:int(y) + 5, at - 2:at + 3].astype(float).mean((0, 1))
                    self.assertGreater(line[high], 1.2 * line[low], (colour, look, line))

    def test_each_attribute_changes_the_picture(self):
        base = [3, 1, 1, 1, 0]
        draw = lambda m, b=0: world.draw([[m], b], np.random.default_rng(5))[0].astype(int)
        for at, n in enumerate((8, 9, 4, 4, 7)):
            other = [*base]
            other[at] = (other[at] + 1) % n
            self.assertGreater((abs(draw(other) - draw(base)).max(-1) > 40).mean(), .004, at)
        self.assertGreater(abs(draw(base, 3) - draw(base)).mean(), 5)


class Grammar(unittest.TestCase):
    def test_captions_tell_scenes_apart(self):
        rng, seen = np.random.default_rng(3), {}
        for _ in range(3000):
            scene = world.random_scene(rng)
            text = grammar.caption(scene)
            self.assertEqual(seen.setdefault(text, scene), scene)

    def test_a_wrong_caption_is_wrong_in_one_thing_and_of_no_held_out_monster(self):
        rng, r = np.random.default_rng(7), random.Random(7)
        for _ in range(500):
            scene = world.random_scene(rng)
            for which in range(len(portraits.WRONG)):
                other = portraits.wrong(scene, which, r)
                differ = sum(a != b for m, o in zip(scene[0], other[0]) for a, b in zip(m, o)) + (other[1] != scene[1])
                self.assertEqual(differ, 1)
                self.assertFalse(any(map(world.held_out, other[0])))

    def test_an_instruction_says_exactly_what_differs(self):
        rng, r = np.random.default_rng(4), random.Random(4)
        for _ in range(3000):
            scene = world.random_scene(rng)
            subjects = [[*m, b] for m, b in portraits.portraits_of(scene, rng)]
            text, shown = grammar.instruction(scene, subjects, r)
            self.assertEqual(text.count("<i>"), len(shown))
            self.assertLessEqual(max(shown), len(subjects) - 1)
            if len(scene[0]) == 2:
                continue
            (m,), portrait = scene[0], subjects[0]
            wanted = grammar.accessory(m[4]) if m[4] else None
            if portrait[4] != m[4]:
                self.assertIn(wanted or "without " + grammar.accessory(portrait[4]), text)
            if len(subjects) == 1:
                self.assertEqual(portrait[1] != m[1], f"<i> in {world.CNAMES[m[1]]}" in text)
                self.assertEqual([portrait[0], *portrait[2:4]], [m[0], *m[2:4]], "what is not said stays")
            else:
                self.assertEqual((portrait[0], portrait[3], subjects[1][1:3]), (m[0], m[3], m[1:3]))
            if portrait[5] != scene[1]:
                self.assertIn(grammar.where(scene[1]), text)


class Tokenizers(unittest.TestCase):
    def test_every_word_is_one_token_in_both(self):
        with tempfile.TemporaryDirectory() as work:
            tokenizer.clip_files(f"{work}/sd/tokenizer")
            tokenizer.sentencepiece_files(f"{work}/kosmos")
            clip, kosmos = tokenizer.Clip(f"{work}/sd/tokenizer"), tokenizer.Kosmos(f"{work}/kosmos")
            from transformers import CLIPTokenizer
            published = CLIPTokenizer.from_pretrained(f"{work}/sd/tokenizer")
            rng, r = np.random.default_rng(6), random.Random(6)
            for k in range(300):
                scene = world.random_scene(rng)
                text = grammar.written(scene, r)
                self.assertEqual(clip([text])[0].tolist(), published(text, padding="max_length", max_length=77)["input_ids"])
                self.assertEqual(len(kosmos.text(text)), len(text.split()))
                self.assertNotIn(3, kosmos.text(text), "an unknown word")
                prompt, shown = grammar.instruction(scene, [[*m, b] for m, b in portraits.portraits_of(scene, rng)], r)
                ids, mask = kosmos(prompt)
                self.assertEqual((len(ids), sum(mask)), (len(mask), 16 * len(shown)))
            self.assertEqual(len(clip([f"a {tokenizer.SPECIAL} monster"], 6)[0].unique()), 5)


class Colours(unittest.TestCase):
    def test_other_colours_never_look_like_a_combination_that_is_held_out(self):
        rng, changed = np.random.default_rng(12), 0
        colours = np.array(list(world.COLOURS.values()))
        for _ in range(2000):
            m = world.random_monster(rng)
            body = portraits.recoloured(np.uint8(colours[m[1]])[None, None], m, rng)[0, 0].astype(int)
            changed += (body != colours[m[1]]).any()
            if len(set(body)) > 1:  # not grey
                self.assertFalse(world.held_out([m[0], int(((colours - body) ** 2).sum(1).argmin()), *m[2:]]), m)
        self.assertGreater(changed, 1500)

    def test_a_prompt_says_the_colour_and_the_place_that_a_portrait_cannot(self):
        for n in range(200):
            r = random.Random(n)
            m, bg = world.random_monster(np.random.default_rng(n)), r.randrange(12)
            words, _ = grammar.instruction([[m], bg], [[m[0], -1, *m[2:], -1]], r)
            self.assertIn(f"<i> in {world.CNAMES[m[1]]}", words)
            self.assertIn(grammar.where(bg), words)
            other = world.random_monster(np.random.default_rng(1000 + n))
            words, shown = grammar.instruction([[m, other], bg], [[m[0], -1, *m[2:], -1], [other[0], -1, *other[2:], -1]], r)
            for j in shown:
                self.assertIn(f"<i> in {world.CNAMES[(m, other)[j][1]]}", words)


class Judge(unittest.TestCase):
    def test_agreement_counts_what_is_right(self):
        import classifier
        scenes = [[[[0, 1, 2, 3, 4]], 5], [[[0, 1, 2, 3, 4], [5, 1, 1, 1, 1]], 6]]
        said = [{"two": False, "background": 5, "monsters": [[0, 1, 2, 0, 4]]}, {"two": True, "background": 0, "monsters": [[0, 0, 0, 0, 0], [5, 0, 0, 0, 0]]}]
        self.assertEqual(classifier.agreement(said, scenes), {"shape": 1, "colour": 1, "pattern": 1, "eyes": 0, "accessory": 1, "background": .5, "pair": 1})

    def test_outlines_two_pixels_off_still_agree(self):
        import outlines
        a, b, c = (np.zeros((128, 128), np.uint8) for _ in range(3))
        a[40, 20:100], b[41, 20:100], c[90, 20:100] = 255, 255, 255
        self.assertEqual(outlines.agreement(a, a), 1)
        self.assertGreater(outlines.agreement(a, b), .6)
        self.assertEqual(outlines.agreement(a, c), 0)


class Folders(unittest.TestCase):
    def test_what_is_drawn_hangs_on_the_seed_alone_and_an_interruption_changes_nothing(self):
        import subprocess
        import sys
        from pathlib import Path
        with tempfile.TemporaryDirectory() as work:
            one, two = Path(work, "one"), Path(work, "two")
            draw = lambda to: subprocess.run([sys.executable, Path(__file__).with_name("folder.py"), to, "--count", "16", "--processes", "1"], check=True)
            draw(one)
            draw(two)
            for name in ("scenes/000003.txt", "instructions/000005.txt", "few/000000.png"):
                (two / name).unlink()
            draw(two)
            files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
            self.assertEqual(files, sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file()))
            for name in files:
                self.assertEqual((one / name).read_bytes(), (two / name).read_bytes(), name)
            for text in (one / "instructions").glob("*.txt"):
                self.assertEqual(text.read_text().count("<i>"), len(list(text.with_suffix("").glob("*.png"))), text)
            for choices in (one / "scenes").glob("*.choices.txt"):
                lines = choices.read_text().splitlines()
                self.assertEqual((len(lines), len(set(lines))), (7, 7), choices)


if __name__ == "__main__":
    unittest.main()
