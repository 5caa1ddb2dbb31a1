//! Models: what a checkpoint is, where its weights come from, the device that draws, one file per network.
//!
//! Owns the reading of checkpoints and the networks of the Stable Diffusion family. It must not know sampling, the queue
//! or the network server. Next: `pipeline` puts the networks together.

mod device;
mod hub;
mod source;

pub use device::{DeviceChoice, DtypeChoice, device_name};
pub use hub::Hub;
pub use source::ModelSource;
