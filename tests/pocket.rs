//! The bundled model draws what it is asked for: the background's colour, the object, and its style.

use std::collections::BTreeMap;

use darkroom::{
    pipeline::{Generate, InferencePipeline, LoadOptions, Unwatched},
    sampling::SamplingConfig,
};
use image::{
    DynamicImage, RgbImage, RgbaImage,
    imageops::{self, FilterType},
};
use serde::Deserialize;

const PROMPTS: usize = 60;
const CORNER_PX: u32 = 8;

#[derive(Deserialize)]
struct Trained {
    default_style: String,
    thumbnail_size: u32,
    thumbnail_columns: u32,
    styles: Vec<Style>,
    colours: BTreeMap<String, [u8; 3]>,
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Style {
    name: String,
    /// What asks for it.
    words: Vec<String>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    head: String,
}

fn model(file: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket").join(file)
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn square_distance(first: [f32; 3], second: [f32; 3]) -> f32 {
    first.iter().zip(second).map(|(a, b)| (a - b).powi(2)).sum()
}

fn floats(rgb: [u8; 3]) -> [f32; 3] {
    rgb.map(f32::from)
}

/// The mean colour of the four corners.
fn corners(picture: &RgbImage) -> [f32; 3] {
    let (width, height) = picture.dimensions();
    let near_end = |at: u32, side: u32| at < CORNER_PX || at >= side - CORNER_PX;
    let pixels = picture.enumerate_pixels().filter(|(x, y, _)| near_end(*x, width) && near_end(*y, height));
    let mut sum = [0.0; 3];
    let mut count = 0.0;
    for (_, _, pixel) in pixels {
        let [r, g, b] = floats(pixel.0);
        sum = [sum[0] + r, sum[1] + g, sum[2] + b];
        count += 1.0;
    }
    sum.map(|channel| channel / count)
}

impl Trained {
    fn read() -> Self {
        serde_json::from_slice(&std::fs::read(model("objects.json")).unwrap()).unwrap()
    }

    fn nearest_colour(&self, colour: [f32; 3]) -> &str {
        let distance = |rgb: &[u8; 3]| square_distance(colour, floats(*rgb));
        let nearest = self.colours.iter().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
        nearest.unwrap().0
    }

    /// The style and the object whose thumbnail on `ground` has the least mean square distance to the picture, or to its
    /// mirror image: every object was trained both ways.
    fn nearest_picture(&self, picture: &RgbImage, ground: [u8; 3], thumbnails: &RgbaImage) -> (&Style, &Object) {
        let side = self.thumbnail_size;
        let small = DynamicImage::ImageRgb8(picture.clone()).resize_exact(side, side, FilterType::Triangle).into_rgb8();
        let mirrored = imageops::flip_horizontal(&small);
        let distance_of = |number: usize, small: &RgbImage| {
            let number = u32::try_from(number).unwrap();
            let corner = (number % self.thumbnail_columns * side, number / self.thumbnail_columns * side);
            let pixels = small.enumerate_pixels().map(|(x, y, pixel)| {
                let [r, g, b, alpha] = thumbnails.get_pixel(corner.0 + x, corner.1 + y).0;
                let alpha = f32::from(alpha) / 255.0;
                let mut placed = floats([r, g, b]);
                for (channel, ground) in placed.iter_mut().zip(floats(ground)) {
                    *channel = *channel * alpha + ground * (1.0 - alpha);
                }
                square_distance(placed, floats(pixel.0))
            });
            pixels.sum::<f32>()
        };
        let distance = |number: usize| distance_of(number, &small).min(distance_of(number, &mirrored));
        let count = self.styles.len() * self.objects.len();
        let nearest = (0..count).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap();
        (&self.styles[nearest / self.objects.len()], &self.objects[nearest % self.objects.len()])
    }

    /// The words of a prompt that ask for a style, another wording each `turn`; the default style's may be none.
    fn style_words(&self, style: &Style, turn: usize) -> String {
        let unsaid = usize::from(style.name == self.default_style);
        match (turn % (style.words.len() + unsaid)).checked_sub(unsaid) {
            Some(wording) => format!(", {},", style.words[wording]),
            None => String::new(),
        }
    }
}

#[test]
fn sixty_prompts_get_their_background_their_object_and_their_style() {
    let trained = Trained::read();
    let thumbnails = image::open(model("thumbnails.png")).unwrap().into_rgba8();
    let pipeline = InferencePipeline::load(&LoadOptions::default(), &mut |_| {}).unwrap();
    let info = pipeline.model();
    let colours: Vec<&String> = trained.colours.keys().collect();
    let (mut grounds, mut objects, mut styles) = (0, 0, 0);
    let mut wrong = Vec::new();
    for turn in 0..PROMPTS {
        let object = &trained.objects[turn * trained.objects.len() / PROMPTS];
        // Steps that share no factor with the counts, so that every colour and style comes up with changing objects.
        let colour = colours[turn * 7 % colours.len()];
        let style = &trained.styles[(turn + turn / trained.styles.len()) % trained.styles.len()];
        let words = trained.style_words(style, turn / 2);
        let prompt =
            format!("{} {}{words} on {} {colour} background", article(&object.name), object.name, article(colour));
        let config = SamplingConfig {
            prompt: prompt.clone(),
            steps: info.default_steps,
            guidance_scale: info.default_guidance_scale,
            seed: turn as u64,
            ..SamplingConfig::default()
        };
        let picture = pipeline.generate(&config, &mut Unwatched).unwrap().images.remove(0).into_rgb8();
        let found_colour = trained.nearest_colour(corners(&picture));
        let (found_style, found) = trained.nearest_picture(&picture, trained.colours[colour], &thumbnails);
        grounds += usize::from(found_colour == colour);
        objects += usize::from(found.head == object.head);
        styles += usize::from(found_style.name == style.name);
        if found_colour != colour || found.head != object.head || found_style.name != style.name {
            wrong.push(format!("{prompt}: {}, {}, on {found_colour}", found.name, found_style.name));
        }
    }
    let enough = grounds >= PROMPTS * 95 / 100 && objects >= PROMPTS * 80 / 100 && styles >= PROMPTS * 80 / 100;
    assert!(enough, "{grounds}, {objects}, {styles}: {wrong:#?}");
}

/// What the checkpoint may weigh, in bytes.
const MOST_BYTES: u64 = 32_000_000;

#[test]
fn the_checkpoint_is_small_and_in_half_precision() {
    let mut bytes = std::fs::metadata(model("model_index.json")).unwrap().len();
    for part in ["tokenizer", "scheduler", "text_encoder", "unet", "vae"] {
        for entry in std::fs::read_dir(model(part)).unwrap() {
            let path = entry.unwrap().path();
            bytes += std::fs::metadata(&path).unwrap().len();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let file = std::fs::read(&path).unwrap();
                let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
                assert!(tensors.iter().all(|(_, tensor)| tensor.dtype() == safetensors::Dtype::F16), "{path:?}");
            }
        }
    }
    assert!(bytes <= MOST_BYTES, "{bytes}");
}
