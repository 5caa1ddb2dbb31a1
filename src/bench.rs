//! `darkroom bench`: how long each stage of a drawing takes here, and how near that is to what the processor can do.
//!
//! Owns what is measured and in which order. Every stage runs once uncounted and then as often as was asked for; its
//! arithmetic is counted where the layers are called, not estimated.

use std::{fmt, ops::ControlFlow, time::Instant};

use serde::Serialize;

use crate::{
    Result,
    bars::{loading_bar, show_stage},
    config::{BenchConfig, BenchStage},
    drawing::DrawingParameters,
    loading::load_pipeline,
    nn,
    output::{OutputOptions, encode},
    pipeline::{Generate, InferencePipeline, PreparedStage, Stage, Unwatched},
    sampling::{Limits, SamplingConfig},
};

/// Steps of the whole picture.
const IMAGE_STEPS: usize = 20;
const PROMPT: &str = "a red fox in the snow";
/// The networks' stages, with their names on a line.
const STAGES: [(BenchStage, &str, Stage); 4] = [
    (BenchStage::TextPair, "text_pair", Stage::TextPair),
    (BenchStage::UnetPair, "unet_pair", Stage::UnetPair),
    (BenchStage::VaeDecode, "vae_decode", Stage::VaeDecode),
    (BenchStage::VaeEncode, "vae_encode", Stage::VaeEncode),
];

/// One line: a stage and how fast it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// `load`, `peak`, `text_pair`, `unet_pair`, `vae_decode`, `vae_encode` or `image`.
    pub stage: &'static str,
    /// The median of its runs.
    pub seconds: f64,
    /// Multiplications and additions in products a second, in thousands of millions; none for `load`.
    pub gflops: Option<f64>,
    /// The same as a share of `peak`'s; none for `load`, and off the CPU.
    pub peak_share: Option<f64>,
    /// The networks' number type.
    pub dtype: String,
    /// The picture's side in pixels.
    pub size: usize,
    /// Threads that draw.
    pub threads: usize,
}

impl Measurement {
    /// As one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are always JSON")
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, seconds, gflops, peak_share, dtype, size, threads } = self;
        write!(f, "{stage:<10} {seconds:>9.4} s")?;
        match gflops {
            Some(gflops) => write!(f, " {gflops:>8.1} GFLOP/s")?,
            None => write!(f, " {:>16}", "")?,
        }
        match peak_share {
            Some(share) => write!(f, " {:>5.1} % of peak", share * 100.0)?,
            None => write!(f, " {:>15}", "")?,
        }
        write!(f, "   {dtype}, {size}x{size}, threads {threads}")
    }
}

/// Measures every stage that is asked for, telling `report` of each as it is done, until that breaks off.
///
/// # Errors
///
/// When the model cannot be loaded, or does not draw pictures of the size that was asked for.
pub fn run(config: &BenchConfig, report: &mut dyn FnMut(&Measurement) -> ControlFlow<()>) -> Result<()> {
    let began = Instant::now();
    let bar = loading_bar();
    let pipeline = load_pipeline(&config.model, Limits::default(), &mut |stage| {
        show_stage(&bar, stage);
    })?;
    bar.finish_and_clear();
    let model = pipeline.model();
    let mut bench = Bench {
        runs: config.runs,
        blank: Measurement {
            stage: "load",
            seconds: began.elapsed().as_secs_f64(),
            gflops: None,
            peak_share: None,
            dtype: model.dtype.clone(),
            size: config.size.unwrap_or(model.width.max(model.height)),
            threads: config.model.threads(),
        },
        peak: None,
        stopped: false,
        report,
    };
    bench.stopped = (bench.report)(&bench.blank).is_break();
    // What is wrong with the size is said before anything is measured.
    let picture = picture(&pipeline, bench.blank.size)?;
    if model.device == "cpu" && !bench.stopped {
        bench.measure_peak(&pipeline);
    }
    let is_wanted = |stage: BenchStage| config.stages.is_empty() || config.stages.contains(&stage);
    for (_, name, stage) in STAGES.into_iter().filter(|(wanted, ..)| is_wanted(*wanted)) {
        bench.measure(name, &pipeline.prepare(stage, bench.blank.size)?)?;
    }
    if is_wanted(BenchStage::Image) { bench.measure("image", &picture) } else { Ok(()) }
}

/// A whole drawing with guidance, from the request to a PNG's bytes.
fn picture(pipeline: &InferencePipeline, size: usize) -> Result<PreparedStage<'_>> {
    let model = pipeline.model();
    // A model that draws without guidance by default is measured with it all the same.
    let guided = Some(model.default_guidance_scale).filter(|scale| *scale > 1.0);
    let config = pipeline.with_inputs(SamplingConfig {
        prompt: PROMPT.to_owned(),
        width: Some(size),
        height: Some(size),
        steps: IMAGE_STEPS,
        guidance_scale: guided.unwrap_or(SamplingConfig::default().guidance_scale),
        ..SamplingConfig::default()
    });
    config.validate(&model.limits)?;
    pipeline.check(&config)?;
    Ok(Box::new(move || {
        let drawn = pipeline.generate(&config, &mut Unwatched)?;
        let texts = DrawingParameters::of_image(&config, 0).texts(model, &OutputOptions::default());
        encode(&drawn.images[0], &OutputOptions::default(), &texts).map(|_| ())
    }))
}

struct Bench<'a> {
    runs: usize,
    /// What all lines share.
    blank: Measurement,
    /// In operations a second.
    peak: Option<f64>,
    /// Nobody wants another line.
    stopped: bool,
    report: &'a mut dyn FnMut(&Measurement) -> ControlFlow<()>,
}

impl Bench<'_> {
    fn measure_peak(&mut self, pipeline: &InferencePipeline) {
        let began = Instant::now();
        let peak = nn::multiply_peak(pipeline.dtype());
        self.peak = Some(peak);
        self.tell("peak", began.elapsed().as_secs_f64(), peak);
    }

    fn measure(&mut self, stage: &'static str, run: &PreparedStage<'_>) -> Result<()> {
        if self.stopped {
            return Ok(());
        }
        let before = nn::operations_done();
        run()?;
        let operations = nn::operations_done() - before;
        let mut seconds = Vec::with_capacity(self.runs);
        for _ in 0..self.runs {
            let began = Instant::now();
            run()?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        let seconds = median(&mut seconds);
        #[expect(clippy::cast_precision_loss, reason = "a rate is not exact anyway")]
        self.tell(stage, seconds, operations as f64 / seconds);
        Ok(())
    }

    fn tell(&mut self, stage: &'static str, seconds: f64, operations_per_second: f64) {
        let gflops = Some(operations_per_second / 1e9);
        let peak_share = self.peak.map(|peak| operations_per_second / peak);
        let line = Measurement { stage, seconds, gflops, peak_share, ..self.blank.clone() };
        self.stopped = (self.report)(&line).is_break();
    }
}

/// The value in the middle; of an even number of them, the mean of the two there.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

/// The most memory that this process has held at once, in bytes, where the system tells.
#[must_use]
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert!((median(&mut [3.0, 1.0, 100.0]) - 3.0).abs() < 1e-9);
        assert!((median(&mut [4.0, 1.0, 2.0, 100.0]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_line_is_aligned_whatever_it_lacks() {
        let mut line = Measurement {
            stage: "load",
            seconds: 1.25,
            gflops: None,
            peak_share: None,
            dtype: "f32".to_owned(),
            size: 256,
            threads: 2,
        };
        let without = line.to_string();
        (line.stage, line.gflops, line.peak_share) = ("unet_pair", Some(123.45), Some(0.5));
        assert_eq!(
            line.to_string(),
            "unet_pair     1.2500 s    123.5 GFLOP/s  50.0 % of peak   f32, 256x256, threads 2"
        );
        assert_eq!(without.len(), line.to_string().len());
    }
}
