//! How fast this worker draws, measured, so that clients can be told how long they will wait.

use std::{ops::Add, time::Duration};

use super::JobTimings;

/// How much a new measurement weighs against the old ones: about the last ten count.
const NEWEST_WEIGHT: f64 = 0.2;

/// What a job costs.
///
/// Attention grows faster than the number of pixels, so an estimate for a larger picture than the last is too low. It
/// corrects itself with the first steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Images of the request.
    pub images: usize,
    /// Denoising steps of each.
    pub steps: usize,
    /// Network passes in one step.
    pub passes: usize,
    /// Pixels of each image.
    pub pixels: usize,
}

/// What is left of jobs: pixels through the denoiser once, and pixels of images around that (text, decoder).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Left {
    denoised_pixels: f64,
    finished_pixels: f64,
}

impl Add for Left {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            denoised_pixels: self.denoised_pixels + other.denoised_pixels,
            finished_pixels: self.finished_pixels + other.finished_pixels,
        }
    }
}

impl Work {
    /// Steps over all the images.
    #[must_use]
    pub fn all_steps(&self) -> usize {
        self.steps * self.images
    }

    /// What is left after `done` steps over all the images. An image is decoded after its last step.
    #[must_use]
    pub fn left_after(&self, done: usize) -> Left {
        let decoded = done.saturating_sub(1) / self.steps.max(1);
        Left {
            denoised_pixels: product(self.all_steps().saturating_sub(done) * self.passes, self.pixels),
            finished_pixels: product(self.images.saturating_sub(decoded), self.pixels),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate, and counts of pixels are far below 2^52")]
fn product(count: usize, pixels: usize) -> f64 {
    count as f64 * pixels as f64
}

/// Running averages of the time that a pixel takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    seconds_per_denoised: Option<f64>,
    seconds_per_finished: Option<f64>,
}

impl Pace {
    /// Takes in one step, whose network passes drew `images_together`, all of this size.
    pub fn observe_step(&mut self, step_time: Duration, images_together: usize, work: &Work) {
        let measured = step_time.as_secs_f64() / product(images_together * work.passes, work.pixels).max(1.0);
        take_in(&mut self.seconds_per_denoised, measured);
    }

    /// Takes in what a job that succeeded took beside its steps.
    pub fn observe_end(&mut self, timings: &JobTimings, work: &Work) {
        // Not what is left of the total: that holds the text and the decoding of those that were drawn with it.
        let beside = timings.stages.encode_ms + timings.stages.decode_ms;
        let seconds = Duration::from_millis(beside).as_secs_f64();
        take_in(&mut self.seconds_per_finished, seconds / product(work.images, work.pixels).max(1.0));
    }

    /// How long what is left will take; `None` before the first measured step. Before the first finished job, the steps
    /// alone are counted.
    #[must_use]
    pub fn estimate(&self, left: Left) -> Option<Duration> {
        let beside = self.seconds_per_finished.unwrap_or(0.0) * left.finished_pixels;
        Duration::try_from_secs_f64(self.seconds_per_denoised? * left.denoised_pixels + beside).ok()
    }
}

fn take_in(average: &mut Option<f64>, measured: f64) {
    *average = Some(average.map_or(measured, |average| average + NEWEST_WEIGHT * (measured - average)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::StageTimings;

    const WORK: Work = Work { images: 2, steps: 5, passes: 2, pixels: 500 };

    fn seconds(pace: &Pace, done: usize) -> f64 {
        pace.estimate(WORK.left_after(done)).unwrap().as_secs_f64()
    }

    #[test]
    fn an_estimate_follows_the_measured_steps() {
        let mut pace = Pace::default();
        assert_eq!(pace.estimate(WORK.left_after(0)), None);
        pace.observe_step(Duration::from_millis(100), 1, &WORK);
        assert!((seconds(&pace, 0) - 1.0).abs() < 1e-9);
        assert!((seconds(&pace, 8) - 0.2).abs() < 1e-9);
        pace.observe_step(Duration::from_millis(200), 1, &WORK);
        assert!((seconds(&pace, 9) - 0.12).abs() < 1e-9);
        // A pass of four images that takes four times as long is no slower.
        pace.observe_step(Duration::from_millis(480), 4, &WORK);
        assert!((seconds(&pace, 9) - 0.12).abs() < 1e-9);
    }

    #[test]
    fn decoding_is_estimated_once_a_job_has_ended() {
        let mut pace = Pace::default();
        pace.observe_step(Duration::from_millis(100), 1, &WORK);
        let stages = StageTimings { encode_ms: 100, denoise_ms: 1000, decode_ms: 700 };
        pace.observe_end(&JobTimings { queue_ms: 300, stages, total_ms: 9100 }, &WORK);
        // 0.4 s beside the steps for each image.
        for (done, wanted) in [(0, 1.8), (5, 1.3), (6, 0.8), (10, 0.4)] {
            assert!((seconds(&pace, done) - wanted).abs() < 1e-9, "{done}");
        }
    }
}
