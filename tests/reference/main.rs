//! darkroom's numbers against diffusers' and torch's, which `make.py` beside this file wrote down.

mod batches;
mod changes;
mod device;
mod networks;
mod pictures;
mod prompts;
mod published;
mod sampling;
mod support;
mod tokenizing;
