//! A pipeline that stands still until a test lets it go on, a worker that draws with it, and a small HTTP client.

// Each test binary uses its own part of this.
#![allow(dead_code, reason = "every test binary compiles this file and uses a part of it")]

pub mod client;

use std::sync::{Arc, Mutex, mpsc as std_mpsc};

use darkroom::{
    Error, Result,
    models::WeightsDigest,
    pipeline::{Generate, Generated, MemoryInfo, ModelInfo, Monitor, PictureUse, PromptSupport},
    sampling::{Limits, SamplerKind, SamplingConfig, SpacingKind},
};
use image::{DynamicImage, Rgb, RgbImage};
use tokio::sync::mpsc;

/// What a test tells the fake to do next.
pub enum Order {
    /// Finish one step.
    Step,
    /// Stand still until the job is stopped, and end.
    UntilStopped,
    /// Stand still, even when the job is stopped, for as long as the test keeps the other end.
    Hang(std_mpsc::Receiver<()>),
    /// Show what the picture looks like.
    Preview,
    /// Fail with this message.
    Fail(&'static str),
    /// Panic with this message.
    Panic(&'static str),
}

/// Draws `steps` steps, each when it is told to, and asks before each whether to go on, as the real one does.
pub struct Fake {
    info: ModelInfo,
    orders: Mutex<std_mpsc::Receiver<Order>>,
    begun: mpsc::UnboundedSender<String>,
}

/// A test's end of the fake.
pub struct Hands {
    /// What the fake is to do. Dropped, it draws whatever comes to its end.
    pub orders: std_mpsc::Sender<Order>,
    /// The prompt of each drawing that has begun.
    pub begun: mpsc::UnboundedReceiver<String>,
}

impl Hands {
    /// Lets `steps` steps be drawn.
    pub fn step(&self, steps: usize) {
        for _ in 0..steps {
            self.orders.send(Order::Step).unwrap();
        }
    }
}

pub fn fake() -> (Arc<Fake>, Hands) {
    let (orders, orders_rx) = std_mpsc::channel();
    let (begun_tx, begun) = mpsc::unbounded_channel();
    let info = ModelInfo {
        name: "fake".into(),
        family: "none".into(),
        device: "cpu".into(),
        dtype: "f32".into(),
        width: 64,
        height: 64,
        default_steps: 2,
        default_guidance_scale: 1.0,
        default_sampler: SamplerKind::Euler,
        samplers: SamplerKind::ALL.to_vec(),
        default_scheduler: SpacingKind::Checkpoint,
        schedulers: SpacingKind::ALL.to_vec(),
        limits: Limits { max_pixels: 1 << 20, max_batch: 4 },
        prompts: PromptSupport { chunk_tokens: 75, max_chunks: 10, second: false },
        digest: WeightsDigest::default(),
        memory: MemoryInfo { weights_bytes: 1 << 20, limit_bytes: Some(1 << 30) },
        pictures: PictureUse::Start,
    };
    (Arc::new(Fake { info, orders: Mutex::new(orders_rx), begun: begun_tx }), Hands { orders, begun })
}

/// The one picture that the fake draws, in a colour of its seed.
pub fn picture(seed: u64) -> DynamicImage {
    let red = u8::try_from(seed % 256).unwrap();
    DynamicImage::ImageRgb8(RgbImage::from_pixel(8, 8, Rgb([red, 20, 30])))
}

impl Generate for Fake {
    fn generate(&self, config: &SamplingConfig, monitor: &mut dyn Monitor) -> Result<Generated> {
        // A test that has dropped its end does not want to know.
        let _ = self.begun.send(config.prompt.clone());
        // A lock that a panicking drawing poisoned is as good as before: it guards a channel's end.
        let orders = self.orders.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut step = 0;
        while step < config.steps {
            // A test that has dropped its end wants the rest drawn at once.
            let order = orders.recv().unwrap_or(Order::Step);
            if let Order::Hang(end) = &order {
                let _ = end.recv();
            }
            // Only now, so that a stopped drawing takes exactly one more order, whenever it was stopped.
            if monitor.should_stop() {
                return Err(Error::Interrupted);
            }
            match order {
                Order::Step => {
                    step += 1;
                    monitor.progress(step, config.steps);
                }
                Order::UntilStopped => {
                    while !monitor.should_stop() {
                        std::thread::yield_now();
                    }
                    return Err(Error::Interrupted);
                }
                Order::Hang(_) => {}
                Order::Preview => monitor.preview(step, DynamicImage::new_rgb8(8, 8)),
                Order::Fail(message) => return Err(Error::Image(message.into())),
                Order::Panic(message) => panic!("{message}"),
            }
        }
        let images = (0..config.n as u64).map(|index| picture(config.seed + index)).collect();
        Ok(Generated { images, ..Generated::default() })
    }

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn check(&self, config: &SamplingConfig) -> Result<()> {
        assert_ne!(config.prompt, "panic in the check");
        if config.clip_skip > 2 {
            return Err(Error::invalid("clip_skip", format!("is {}; the fake has 3 layers", config.clip_skip)));
        }
        Ok(())
    }
}
