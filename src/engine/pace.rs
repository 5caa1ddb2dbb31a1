//! How fast this worker draws, measured, so that clients can be told how long they will wait.

use std::time::Duration;

/// How much a new measurement weighs against the old ones: about the last ten steps count.
const NEWEST_WEIGHT: f64 = 0.2;

/// What a job costs: steps, each so many units. A unit is one pixel through the network once.
///
/// Attention grows faster than that with the number of pixels, so an estimate for a larger picture than the last is too
/// low. It corrects itself with the first steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Denoising steps over all the images of the request.
    pub steps: usize,
    /// Pixels of one image, times network passes in one step.
    pub units_per_step: f64,
}

impl Work {
    /// What is left after `done` steps, in units.
    #[must_use]
    pub fn units_left(&self, done: usize) -> f64 {
        // Steps are at most a few thousand, which f64 counts exactly.
        #[expect(clippy::cast_precision_loss, reason = "a count of steps is far below 2^52")]
        let steps = self.steps.saturating_sub(done) as f64;
        steps * self.units_per_step
    }
}

/// A running average of the time that one unit takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    seconds_per_unit: Option<f64>,
}

impl Pace {
    /// Takes in one step of a job. A job's first step holds the text encoding, too, so it counts only while there is
    /// nothing better.
    pub fn observe(&mut self, step: usize, step_time: Duration, work: &Work) {
        let measured = step_time.as_secs_f64() / work.units_per_step.max(1.0);
        self.seconds_per_unit = match self.seconds_per_unit {
            None => Some(measured),
            Some(average) if step <= 1 => Some(average),
            Some(average) => Some(average + NEWEST_WEIGHT * (measured - average)),
        };
    }

    /// How long `units` will take; `None` before the first measurement.
    #[must_use]
    pub fn estimate(&self, units: f64) -> Option<Duration> {
        self.seconds_per_unit.and_then(|seconds| Duration::try_from_secs_f64(seconds * units).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_follows_the_measured_steps() {
        let work = Work { steps: 10, units_per_step: 1000.0 };
        let mut pace = Pace::default();
        assert_eq!(pace.estimate(work.units_left(0)), None);
        pace.observe(1, Duration::from_millis(100), &work);
        assert_eq!(pace.estimate(work.units_left(0)), Some(Duration::from_secs(1)));
        assert_eq!(pace.estimate(work.units_left(8)), Some(Duration::from_millis(200)));
        pace.observe(2, Duration::from_millis(200), &work);
        assert_eq!(pace.estimate(1000.0), Some(Duration::from_millis(120)));
        pace.observe(1, Duration::from_secs(9), &work);
        assert_eq!(pace.estimate(1000.0), Some(Duration::from_millis(120)));
    }
}
