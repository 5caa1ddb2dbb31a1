//! Named tensors in safetensors files, mapped rather than read, each checked against the shape that is wanted.
//!
//! This is the program's one memory map. A truncated file is found when its header is read, before any tensor is. The file
//! is a little long with its tests, which write the broken files that it has to refuse.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    rc::Rc,
};

use candle_core::{DType, Device, Tensor};
use half::bf16;
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};

use super::{cpu, host::has_kernels, mistaken::mistaken_for};
use crate::{Error, Result};

/// Where a weight file's bytes are.
#[derive(Debug)]
pub enum WeightFile {
    /// In a file.
    Path(PathBuf),
    /// In this program, under a path for messages.
    Embedded(&'static str, &'static [u8]),
}

/// What has been loaded so far of all the weights, told to whoever waits.
pub struct LoadProgress<'a> {
    total_bytes: Cell<u64>,
    done_bytes: Cell<u64>,
    report: RefCell<&'a mut dyn FnMut(f32)>,
}

impl<'a> LoadProgress<'a> {
    /// A progress that calls `report` with the part that is done, 0 to 1.
    pub fn new(report: &'a mut dyn FnMut(f32)) -> Self {
        Self { total_bytes: Cell::new(0), done_bytes: Cell::new(0), report: RefCell::new(report) }
    }

    #[expect(clippy::cast_precision_loss, reason = "a share for a progress bar")]
    fn add(&self, bytes: u64) {
        self.done_bytes.set(self.done_bytes.get() + bytes);
        let part = self.done_bytes.get() as f64 / self.total_bytes.get().max(1) as f64;
        #[expect(clippy::cast_possible_truncation, reason = "a share for a progress bar")]
        (self.report.borrow_mut())(part.min(1.0) as f32);
    }
}

/// The tensors below one name of a network, on their way to a device.
#[derive(Clone)]
pub struct Weights<'a> {
    files: Rc<Files<'a>>,
    prefix: String,
    dtype: DType,
}

struct Files<'a> {
    files: Vec<Opened>,
    /// Which file a tensor is in, and where.
    tensors: HashMap<String, (usize, TensorInfo)>,
    device: Device,
    progress: &'a LoadProgress<'a>,
}

struct Opened {
    path: PathBuf,
    bytes: Bytes,
    /// Where the tensors' data begins.
    data_start: usize,
}

enum Bytes {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }

    /// Says that some bytes are not needed any more, so that a checkpoint is not in memory beside what was made of it.
    fn give_back(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // SAFETY: the map is of a file and never written to: pages that are read again are read from the file.
            // Advice that is refused costs memory and nothing else.
            _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl<'a> Weights<'a> {
    /// Opens the files of one network, whose tensors are to go to `device` as `dtype`.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenFile`] for a file that cannot be read, is no safetensors file, or is shorter than its header says.
    pub fn open(files: Vec<WeightFile>, device: &Device, dtype: DType, progress: &'a LoadProgress<'a>) -> Result<Self> {
        let mut opened = Vec::new();
        let mut tensors = HashMap::new();
        for file in files {
            let file = open(file)?;
            let bytes = file.bytes.get();
            let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| {
                // Looked at only now: the first bytes of a right file may be anything.
                let message =
                    mistaken_for(bytes).unwrap_or_else(|| format!("is not a whole safetensors file: {error}"));
                Error::BrokenFile { path: file.path.clone(), message }
            })?;
            progress.total_bytes.set(progress.total_bytes.get() + metadata.data_len() as u64);
            for (name, info) in metadata.tensors() {
                tensors.insert(name, (opened.len(), info.clone()));
            }
            opened.push(Opened { data_start: header + size_of::<u64>(), ..file });
        }
        let files = Files { files: opened, tensors, device: device.clone(), progress };
        Ok(Self { files: Rc::new(files), prefix: String::new(), dtype })
    }

    /// The tensors below `name`.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        Self { files: Rc::clone(&self.files), prefix: self.name(name), dtype: self.dtype }
    }

    /// The tensors below the `index`th entry of the list `name`.
    #[must_use]
    pub fn entry(&self, name: &str, index: usize) -> Self {
        self.at(&format!("{name}.{index}"))
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.files.tensors.contains_key(&self.name(name))
    }

    /// What all the tensors of the files take in the number type that they are given in.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let elements = |(_, info): &(usize, TensorInfo)| info.shape.iter().product::<usize>();
        self.files.tensors.values().map(elements).sum::<usize>() * self.dtype.size_in_bytes()
    }

    /// The number type that tensors are given in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The same tensors in f32 where the CPU kernels compute: for layers whose rounding a whole drawing would carry on, and
    /// which have little to compute. Elsewhere they stay as they are.
    #[must_use]
    pub fn exact(&self) -> Self {
        let dtype = if self.has_kernels() { DType::F32 } else { self.dtype };
        Self { dtype, ..self.clone() }
    }

    /// The device that tensors are on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.files.device
    }

    /// The tensor `name`, on the device and of the type that were asked for.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::TensorShape`] when its shape is not `wanted`, [`Error::BrokenFile`] for a
    /// number type that no network is published in.
    pub fn tensor(&self, name: &str, wanted: &[usize]) -> Result<Tensor> {
        self.tensor_of(name, &[wanted])
    }

    /// As [`tensor`](Self::tensor), of the first shape in `wanted`, where older checkpoints write it as one of the others
    /// with as many elements.
    ///
    /// # Errors
    ///
    /// As [`tensor`](Self::tensor).
    pub fn tensor_of(&self, name: &str, wanted: &[&[usize]]) -> Result<Tensor> {
        let raw = self.raw(name, wanted)?;
        // Converted where it is read, so that a device gets what it computes with and no more.
        let tensor = Tensor::from_raw_buffer(raw.bytes, raw.dtype, wanted[0], &Device::Cpu)?;
        Ok(tensor.to_dtype(self.dtype)?.to_device(&self.files.device)?)
    }

    /// As [`tensor_of`](Self::tensor_of), where it is in its file.
    ///
    /// # Errors
    ///
    /// As [`tensor`](Self::tensor).
    pub(super) fn raw(&self, name: &str, wanted: &[&[usize]]) -> Result<RawTensor<'_, 'a>> {
        let name = self.name(name);
        let Some((number, info)) = self.files.tensors.get(&name) else {
            let path = self.files.files.last().map(|file| file.path.clone()).unwrap_or_default();
            return Err(Error::MissingTensor { path, tensor: name, wanted: wanted[0].to_vec() });
        };
        let file = &self.files.files[*number];
        if !wanted.contains(&info.shape.as_slice()) {
            let (found, wanted) = (info.shape.clone(), wanted[0].to_vec());
            return Err(Error::TensorShape { path: file.path.clone(), tensor: name, found, wanted });
        }
        let dtype = match info.dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            other => {
                let message = format!("tensor {name} is of type {other:?}; f16, bf16, f32 and f64 can be read");
                return Err(Error::BrokenFile { path: file.path.clone(), message });
            }
        };
        let (start, end) = info.data_offsets;
        let range = file.data_start + start..file.data_start + end;
        Ok(RawTensor {
            bytes: &file.bytes.get()[range.clone()],
            dtype,
            file,
            range,
            progress: self.files.progress,
            read_again: false,
        })
    }

    /// Whether layers of these weights compute with the CPU kernels.
    pub(super) fn has_kernels(&self) -> bool {
        has_kernels(&self.files.device, self.dtype)
    }

    fn name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

/// A tensor where it is in its file. When it is dropped it counts as loaded, and its pages are given back, unless it is
/// [`read_again`](Self::read_again).
pub(super) struct RawTensor<'w, 'p> {
    bytes: &'w [u8],
    dtype: DType,
    file: &'w Opened,
    range: Range<usize>,
    progress: &'p LoadProgress<'p>,
    read_again: bool,
}

impl RawTensor<'_, '_> {
    /// For a tensor that is read once more after this.
    pub(super) fn read_again(mut self) -> Self {
        self.read_again = true;
        self
    }

    /// All numbers in f32.
    pub(super) fn to_vec(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.bytes.len() / self.dtype.size_in_bytes()];
        self.numbers().read(0, &mut values);
        values
    }

    /// What of it threads share.
    pub(super) fn numbers(&self) -> RawNumbers<'_> {
        RawNumbers { bytes: self.bytes, dtype: self.dtype }
    }
}

impl Drop for RawTensor<'_, '_> {
    fn drop(&mut self) {
        if self.read_again {
            return;
        }
        self.file.bytes.give_back(self.range.clone());
        self.progress.add(self.bytes.len() as u64);
    }
}

/// The numbers of a tensor, as they are in its file.
#[derive(Clone, Copy)]
pub(super) struct RawNumbers<'a> {
    bytes: &'a [u8],
    dtype: DType,
}

impl RawNumbers<'_> {
    /// Copies numbers from `start` on into `into`, in f32.
    pub(super) fn read(self, start: usize, into: &mut [f32]) {
        let size = self.dtype.size_in_bytes();
        let bytes = &self.bytes[start * size..][..into.len() * size];
        match self.dtype {
            DType::F16 => {
                cpu::widen_halves(bytes.as_chunks().0, into);
            }
            DType::BF16 => {
                for (value, bytes) in into.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            DType::F64 => {
                for (value, bytes) in into.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    #[expect(clippy::cast_possible_truncation, reason = "f32 is what networks compute in at most")]
                    let narrow = f64::from_le_bytes(*bytes) as f32;
                    *value = narrow;
                }
            }
            _ => {
                for (value, bytes) in into.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

fn open(file: WeightFile) -> Result<Opened> {
    match file {
        WeightFile::Embedded(path, bytes) => {
            Ok(Opened { path: PathBuf::from(path), bytes: Bytes::Embedded(bytes), data_start: 0 })
        }
        WeightFile::Path(path) => {
            let map =
                map(&path).map_err(|error| Error::BrokenFile { path: path.clone(), message: error.to_string() })?;
            Ok(Opened { path, bytes: Bytes::Mapped(map), data_start: 0 })
        }
    }
}

fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is only read. Whoever changes a checkpoint's files while they are loaded changes the weights, or
    // on truncation ends the process; the map does not outlive the loading.
    unsafe { Mmap::map(&file) }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use safetensors::tensor::TensorView;

    use super::*;

    fn written(folder: &Path) -> PathBuf {
        let values: Vec<u8> = [1.0_f32, -2.0, 0.5, 4.0, 8.0, 16.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![2, 3], &values).unwrap();
        let path = folder.join("w.safetensors");
        safetensors::serialize_to_file([("block.0.weight", view)], None, &path).unwrap();
        path
    }

    #[test]
    fn tensors_are_found_below_their_names_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let mut parts = Vec::new();
        let mut report = |part| parts.push(part);
        let progress = LoadProgress::new(&mut report);
        let files = vec![WeightFile::Path(path.clone())];
        let weights = Weights::open(files, &Device::Cpu, DType::F16, &progress).unwrap().entry("block", 0);
        assert!(weights.contains("weight") && !weights.contains("bias"));
        let tensor = weights.tensor("weight", &[2, 3]).unwrap();
        assert_eq!((tensor.dtype(), tensor.dims()), (DType::F16, &[2, 3][..]));

        let wrong = weights.tensor("weight", &[3, 2]).unwrap_err().to_string();
        let file = path.display();
        assert_eq!(
            wrong,
            format!("{file}: tensor block.0.weight has shape [2, 3]; the configuration calls for [3, 2]")
        );
        let missing = weights.tensor("bias", &[2]).unwrap_err().to_string();
        assert_eq!(missing, format!("{file}: tensor block.0.bias is missing; wanted shape [2]"));
        drop(weights);
        assert_eq!(parts, [1.0]);
    }

    #[test]
    fn numbers_are_read_in_f32_from_every_type_they_are_published_in() {
        // More than are widened at once.
        let values: Vec<f32> = (0..150_u8).map(|i| f32::from(i) / 4.0 - 16.0).collect();
        let bytes = |of: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|value| of(*value)).collect::<Vec<u8>>();
        let files = [
            (Dtype::F16, bytes(&|value| f16::from_f32(value).to_le_bytes().to_vec())),
            (Dtype::BF16, bytes(&|value| bf16::from_f32(value).to_le_bytes().to_vec())),
            (Dtype::F32, bytes(&|value| value.to_le_bytes().to_vec())),
            (Dtype::F64, bytes(&|value| f64::from(value).to_le_bytes().to_vec())),
        ];
        let folder = tempfile::tempdir().unwrap();
        for (dtype, bytes) in files {
            let path = folder.path().join(format!("{dtype:?}.safetensors"));
            let view = TensorView::new(dtype, vec![150], &bytes).unwrap();
            safetensors::serialize_to_file([("bias", view)], None, &path).unwrap();
            let mut report = |_| {};
            let progress = LoadProgress::new(&mut report);
            let weights = Weights::open(vec![WeightFile::Path(path)], &Device::Cpu, DType::BF16, &progress).unwrap();
            let raw = weights.raw("bias", &[&[150]]).unwrap();
            assert_eq!(raw.to_vec(), values, "{dtype:?}");
            let mut some = [0.0; 70];
            raw.numbers().read(77, &mut some);
            assert_eq!(some, values[77..147], "{dtype:?}");
        }
    }

    #[test]
    fn halves_are_read_wherever_they_lie() {
        let values: Vec<f32> = (0..150_u8).map(|i| f32::from(i) / 4.0 - 16.0).collect();
        let halves: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        for skipped in [0, 1] {
            let moved: Vec<u8> = std::iter::repeat_n(0, skipped).chain(halves.iter().copied()).collect();
            let mut found = vec![0.0; values.len()];
            RawNumbers { bytes: &moved[skipped..], dtype: DType::F16 }.read(0, &mut found);
            assert_eq!(found, values);
        }
    }

    #[test]
    fn a_truncated_file_is_found_before_any_tensor_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = std::fs::read(&path).unwrap();
        for length in [whole.len() - 1, 20, 4, 0] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut report = |_| {};
            let progress = LoadProgress::new(&mut report);
            let files = vec![WeightFile::Path(path.clone())];
            let error = Weights::open(files, &Device::Cpu, DType::F32, &progress).err().unwrap().to_string();
            assert!(error.starts_with(&path.display().to_string()), "{error}");
        }
    }
}
