//! CUDA's shared libraries, opened when a CUDA device is asked for and not before.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    path::PathBuf,
    sync::OnceLock,
};

use super::{
    super::cuda_machine::BUILT_FOR,
    stand_ins::{FUNCTIONS, addresses},
};

/// A library of CUDA's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// The driver.
    Driver,
    /// cuBLAS: products.
    Blas,
    /// What cuBLAS stands on; no function of it is called here.
    BlasLt,
    /// cuRAND: the tensor library opens a generator with each device.
    Random,
    /// NVRTC, a compiler, which cuDNN uses; no function of it is called here.
    Compiler,
    /// cuDNN: convolutions.
    Dnn,
}

/// The libraries that have to be there, and what to install where one is not. The driver comes first: the others need it.
const NEEDED: &[(Library, &str)] = &[
    (Library::Driver, "install NVIDIA's driver"),
    (Library::Blas, "install cuBLAS"),
    (Library::Random, "install cuRAND"),
    #[cfg(feature = "cudnn")]
    (Library::Dnn, "install cuDNN 9"),
];

impl Library {
    /// The file that a loader looks for.
    fn file(self) -> String {
        let major = BUILT_FOR.major;
        match self {
            Self::Driver => "libcuda.so.1".to_owned(),
            Self::Blas => format!("libcublas.so.{major}"),
            Self::BlasLt => format!("libcublasLt.so.{major}"),
            // Its number did not move with CUDA 11, 12 and 13.
            Self::Random => "libcurand.so.10".to_owned(),
            Self::Compiler => format!("libnvrtc.so.{major}"),
            Self::Dnn => "libcudnn.so.9".to_owned(),
        }
    }
}

/// Opens the libraries, once, and lets the stand-ins jump to their functions.
///
/// # Errors
///
/// Which library is missing and what to do, in one sentence.
pub fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(load_all).clone()
}

fn load_all() -> Result<(), String> {
    // cuBLAS and cuDNN find these by their names once they are open, wherever they were opened from.
    _ = open(Library::BlasLt);
    _ = open(Library::Compiler);
    for (library, remedy) in NEEDED {
        let handle = open(*library).map_err(|error| {
            let place = if *library == Library::Driver { "" } else { ", and name its folder in LD_LIBRARY_PATH" };
            format!("{error}: {remedy}{place}, or draw on \"cpu\"")
        })?;
        let functions = FUNCTIONS.iter().enumerate().filter(|(_, (of, _))| of == library);
        for (number, (_, name)) in functions {
            let name = CStr::from_bytes_with_nul(name.as_bytes()).expect("each name ends in a zero");
            // SAFETY: the handle is of a library that stays open, the name ends in a zero.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            // A function that an older library lacks stays missing, and fails when it is called.
            if !address.is_null() {
                // SAFETY: the table has an entry for each function, aligned; nothing calls one before `load` is done, and
                // `load` does this once.
                unsafe { addresses().cast::<*const c_void>().add(number).write(address) };
            }
        }
    }
    Ok(())
}

/// Opens a library by the loader's own search, else from where CUDA is usually installed.
fn open(library: Library) -> Result<*mut c_void, String> {
    let file = library.file();
    let mut first_failure = None;
    for path in [PathBuf::from(&file)].into_iter().chain(usual_folders().map(|folder| folder.join(&file))) {
        let Ok(path) = CString::new(path.into_os_string().into_encoded_bytes()) else { continue };
        // SAFETY: a path that ends in a zero. What the library does when it is opened is its maker's.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if !handle.is_null() {
            return Ok(handle);
        }
        // SAFETY: after a failure this is null or a text of the loader's that ends in a zero, which is copied at once.
        let said = unsafe {
            let said: *const c_char = libc::dlerror();
            if said.is_null() { String::new() } else { CStr::from_ptr(said).to_string_lossy().into_owned() }
        };
        first_failure.get_or_insert(said);
    }
    let said = first_failure.unwrap_or_default();
    // "libx.so: cannot open shared object file: No such file or directory": that is all the file's name has to say.
    Err(if said.contains("No such file") {
        format!("{file} was not found")
    } else {
        format!("{file} does not load ({said})")
    })
}

fn usual_folders() -> impl Iterator<Item = PathBuf> {
    let named = ["CUDNN_PATH", "CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let roots = named.chain([PathBuf::from("/usr/local/cuda")]);
    roots.flat_map(|root| [root.join("lib64"), root.join("lib")])
}
