//! darkroom's numbers against diffusers' and torch's, which `make.py` beside this file wrote down.

mod batches;
mod changes;
mod networks;
mod pictures;
mod published;
mod rules;
mod sampling;
mod support;
mod tokenizing;
