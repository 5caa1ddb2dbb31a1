//! The jobs that are drawn together: how far each is, and who hears of it.
//!
//! Owns each job's steps, pictures and end. A job ends on its own, whatever becomes of the others.

use std::time::Duration;

use image::DynamicImage;

use super::{Generated, GroupJob, StageTimings, denoise::Image};
use crate::{Error, Result};

/// Hears of the end of a job, by its place in its company.
pub(super) type Ended<'a> = dyn FnMut(usize, Result<Generated>) + 'a;

/// Jobs that are drawn together.
pub(super) struct Company<'a, 'm> {
    jobs: &'a mut [GroupJob<'m>],
    standings: Vec<Standing>,
    ended: &'a mut Ended<'a>,
}

/// How far a job is.
#[derive(Default)]
struct Standing {
    /// Steps done, over all its images.
    steps_done: usize,
    /// The most of them that its monitor was told, and after how many it was shown a preview. What is drawn again is not
    /// told again.
    steps_told: usize,
    steps_shown: usize,
    steps: usize,
    images: Vec<DynamicImage>,
    timings: Timings,
    warnings: Vec<String>,
    has_ended: bool,
}

/// How long each stage took so far.
#[derive(Default)]
struct Timings {
    encode: Duration,
    denoise: Duration,
    decode: Duration,
}

/// A stage whose time is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timed {
    Encode,
    Denoise,
    Decode,
}

impl<'a, 'm> Company<'a, 'm> {
    pub(super) fn new(jobs: &'a mut [GroupJob<'m>], ended: &'a mut Ended<'a>) -> Self {
        let standings = jobs.iter().map(|_| Standing::default()).collect();
        Self { jobs, standings, ended }
    }

    /// Asked before each network call: a job that is to stop has ended. Fails once every job of `images` has.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`].
    pub(super) fn go_on(&mut self, images: &[Image<'_>]) -> Result<()> {
        let mut any = false;
        for image in images {
            any |= self.goes_on(image.job);
        }
        if any { Ok(()) } else { Err(Error::Interrupted) }
    }

    /// Whether a job goes on; one that is to stop has ended.
    pub(super) fn goes_on(&mut self, job: usize) -> bool {
        if !self.standings[job].has_ended && self.jobs[job].monitor.should_stop() {
            self.end(job, Err(Error::Interrupted));
        }
        !self.standings[job].has_ended
    }

    /// The rows of those of `images` whose job has not ended.
    pub(super) fn still_there(&self, images: &[Image<'_>]) -> Vec<usize> {
        (0..images.len()).filter(|row| !self.standings[images[*row].job].has_ended).collect()
    }

    /// A job's text is encoded: it takes so many steps over all its images.
    pub(super) fn prepared(&mut self, job: usize, steps: usize, warnings: Vec<String>) {
        let standing = &mut self.standings[job];
        (standing.steps, standing.warnings) = (steps, warnings);
    }

    /// Something about a job that whoever asked for it should know; once is enough.
    pub(super) fn warn(&mut self, job: usize, warning: String) {
        let warnings = &mut self.standings[job].warnings;
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// From now on `images` are drawn in the same network passes.
    pub(super) fn drawn_together(&mut self, images: &[Image<'_>]) {
        for (row, image) in images.iter().enumerate() {
            if is_last_of_job(images, row) {
                self.jobs[image.job].monitor.drawn_together(images.len());
            }
        }
    }

    /// A step of each of `images` is done. A job hears of all its images at once.
    pub(super) fn step_done(&mut self, images: &[Image<'_>]) {
        for image in images {
            self.standings[image.job].steps_done += 1;
        }
        for (row, image) in images.iter().enumerate() {
            let standing = &mut self.standings[image.job];
            if is_last_of_job(images, row) && !standing.has_ended && standing.steps_done > standing.steps_told {
                standing.steps_told = standing.steps_done;
                self.jobs[image.job].monitor.progress(standing.steps_done, standing.steps);
            }
        }
    }

    /// Whether a job has not been shown a preview of its last step.
    pub(super) fn is_new(&self, job: usize) -> bool {
        self.standings[job].steps_done > self.standings[job].steps_shown
    }

    pub(super) fn preview(&mut self, job: usize, preview: DynamicImage) {
        let standing = &mut self.standings[job];
        standing.steps_shown = standing.steps_done;
        self.jobs[job].monitor.preview(standing.steps_done, preview);
    }

    /// How many steps each of `jobs` has done.
    pub(super) fn steps_done(&self, jobs: &[usize]) -> Vec<usize> {
        jobs.iter().map(|job| self.standings[*job].steps_done).collect()
    }

    /// What `jobs` did after they had done so many steps each is drawn again.
    pub(super) fn go_back(&mut self, jobs: &[usize], steps_done: &[usize]) {
        for (job, steps) in jobs.iter().zip(steps_done) {
            self.standings[*job].steps_done = *steps;
        }
    }

    /// A stage of a job took so long.
    pub(super) fn took(&mut self, job: usize, stage: Timed, duration: Duration) {
        let timings = &mut self.standings[job].timings;
        match stage {
            Timed::Encode => timings.encode += duration,
            Timed::Denoise => timings.denoise += duration,
            Timed::Decode => timings.decode += duration,
        }
    }

    /// An image of a job is finished; the last of its `n` ends the job.
    pub(super) fn image_done(&mut self, job: usize, image: DynamicImage) {
        let standing = &mut self.standings[job];
        standing.images.push(image);
        if standing.images.len() == self.jobs[job].config.n {
            let Standing { images, timings, warnings, .. } = std::mem::take(standing);
            self.end(job, Ok(Generated { images, timings: timings.in_ms(), warnings }));
        }
    }

    /// A job has ended. Only the first end counts.
    pub(super) fn end(&mut self, job: usize, result: Result<Generated>) {
        if !std::mem::replace(&mut self.standings[job].has_ended, true) {
            (self.ended)(job, result);
        }
    }
}

/// A job's images are next to each other.
fn is_last_of_job(images: &[Image<'_>], row: usize) -> bool {
    images.get(row + 1).is_none_or(|next| next.job != images[row].job)
}

impl Timings {
    fn in_ms(&self) -> StageTimings {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        StageTimings { encode_ms: ms(self.encode), denoise_ms: ms(self.denoise), decode_ms: ms(self.decode) }
    }
}
