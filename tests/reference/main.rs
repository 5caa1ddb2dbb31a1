//! darkroom's numbers against diffusers' and torch's, which `make.py` beside this file wrote down.

mod accelerator;
mod batches;
mod changes;
mod device;
mod guidance;
mod networks;
mod pictures;
mod prompts;
mod published;
mod rules;
mod sampling;
mod strips;
mod support;
mod tokenizing;
