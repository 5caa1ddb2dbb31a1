//! Progress bars on a terminal; nothing elsewhere.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::loading::LoadStage;

const TEMPLATE: &str = "{msg} [{bar:40}] {pos}/{len} {eta}";

/// A bar of `length` ticks that says what is going on.
#[must_use]
pub fn bar(length: u64, message: &'static str) -> ProgressBar {
    let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template(TEMPLATE).expect("the template is a constant that was tried");
    ProgressBar::with_draw_target(Some(length), target).with_style(style.progress_chars("=> ")).with_message(message)
}

/// A bar for a model that is loaded, in percent.
#[must_use]
pub fn loading_bar() -> ProgressBar {
    bar(100, "loading the model")
}

/// Shows a stage of loading, and gives the percentage while files are read.
pub fn show_stage(bar: &ProgressBar, stage: LoadStage) -> Option<u8> {
    match stage {
        LoadStage::Reading { fraction } => {
            // Clamped to 0..=100 first, so the conversion is exact.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=100")]
            let percent = (fraction * 100.0).clamp(0.0, 100.0) as u8;
            bar.set_position(percent.into());
            Some(percent)
        }
        LoadStage::Warming => {
            bar.set_message("warming up");
            bar.set_position(100);
            None
        }
    }
}
