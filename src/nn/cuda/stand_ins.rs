//! A stand-in for each of CUDA's functions that this program calls, so that it starts on machines without CUDA.
//!
//! The bindings below the tensor library name CUDA's shared libraries when they are linked. A loader does not start a program
//! whose libraries are not there, a driver's least of all. So the linker finds each function here first: a jump to an address
//! in a table, which `libraries` fills before any of them is called. Linked this way the program names none of the libraries.
//!
//! The names are those that cudarc 0.19's `driver`, `cublas`, `cublaslt`, `curand`, `nvrtc` and `cudnn` modules call. One
//! that is missing here brings its library back among those that the program needs, which `deploy/cuda/check.sh` finds.

use std::ffi::c_void;

use super::libraries::Library;

/// Writes the functions, their addresses' table, and the names in the table's order.
macro_rules! stand_ins {
    ($($library:ident { $($name:ident)* })*) => {
        /// Each function's library and name, in the order of [`addresses`].
        pub const FUNCTIONS: &[(Library, &str)] = &[$($((Library::$library, concat!(stringify!($name), "\0")),)*)*];

        std::arch::global_asm!(
            ".pushsection .text.darkroom_cuda, \"ax\", @progbits",
            // Whoever calls what was never found gets 1, which every library here means as a failure.
            "darkroom_cuda_missing:",
            "mov eax, 1",
            "ret",
            $($(
                concat!(".globl ", stringify!($name)),
                // Not for the libraries themselves, which call each other.
                concat!(".hidden ", stringify!($name)),
                concat!(".type ", stringify!($name), ", @function"),
                concat!(stringify!($name), ":"),
                concat!("jmp qword ptr [rip + darkroom_cuda_at_", stringify!($name), "]"),
            )*)*
            ".popsection",
            ".pushsection .data.darkroom_cuda, \"aw\", @progbits",
            ".balign 8",
            ".globl darkroom_cuda_addresses",
            ".hidden darkroom_cuda_addresses",
            "darkroom_cuda_addresses:",
            $($(concat!("darkroom_cuda_at_", stringify!($name), ": .quad darkroom_cuda_missing"),)*)*
            ".popsection",
        );
    };
}

unsafe extern "C" {
    static mut darkroom_cuda_addresses: [*const c_void; FUNCTIONS.len()];
}

/// Where the functions' addresses are kept.
pub fn addresses() -> *mut [*const c_void; FUNCTIONS.len()] {
    &raw mut darkroom_cuda_addresses
}

stand_ins! {
    Driver {
        cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig cuCtxGetCurrent cuCtxGetLimit
        cuCtxGetStreamPriorityRange cuCtxSetCacheConfig cuCtxSetCurrent cuCtxSetFlags cuCtxSetLimit
        cuCtxSynchronize cuDestroyExternalMemory cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount
        cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceGetName cuDeviceGetUuid cuDeviceGetUuid_v2
        cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDeviceSetMemPool cuDeviceTotalMem_v2
        cuDriverGetVersion cuEventCreate cuEventDestroy_v2 cuEventElapsedTime cuEventElapsedTime_v2
        cuEventQuery cuEventRecord cuEventSynchronize cuExternalMemoryGetMappedBuffer cuFuncGetAttribute
        cuFuncSetAttribute cuFuncSetCacheConfig cuGetErrorName cuGetErrorString cuGraphClone
        cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch cuGraphUpload
        cuImportExternalMemory cuInit cuLaunchCooperativeKernel cuLaunchHostFunc cuLaunchKernel
        cuMemAdvise_v2 cuMemAllocAsync cuMemAllocFromPoolAsync cuMemAllocManaged cuMemAlloc_v2
        cuMemFreeAsync cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemHostAlloc cuMemPoolCreate
        cuMemPoolDestroy cuMemPoolGetAttribute cuMemPoolSetAttribute cuMemPoolTrimTo
        cuMemPrefetchAsync_v2 cuMemcpyDtoDAsync_v2 cuMemcpyDtoD_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2
        cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2 cuMemcpyPeerAsync cuMemsetD8Async cuMemsetD8_v2
        cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleLoad cuModuleLoadData cuModuleUnload
        cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveBlocksPerMultiprocessor
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyMaxActiveClusters
        cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags
        cuOccupancyMaxPotentialClusterSize cuProfilerStart cuProfilerStop cuStreamAttachMemAsync
        cuStreamBeginCapture_v2 cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2
        cuStreamEndCapture cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent
    }
    Blas {
        cublasCreate_v2 cublasDasum_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasDgemm_v2 cublasDgemv_v2
        cublasGemmEx cublasGemmGroupedBatchedEx cublasGemmStridedBatchedEx cublasGetPointerMode_v2
        cublasSasum_v2 cublasSetPointerMode_v2 cublasSetStream_v2 cublasSgemmStridedBatched cublasSgemm_v2
        cublasSgemv_v2
    }
    BlasLt {
        cublasLtCreate cublasLtDestroy cublasLtLoggerOpenFile cublasLtLoggerSetLevel cublasLtMatmul
        cublasLtMatmulAlgoGetHeuristic cublasLtMatmulDescCreate cublasLtMatmulDescDestroy
        cublasLtMatmulDescSetAttribute cublasLtMatmulPreferenceCreate cublasLtMatmulPreferenceDestroy
        cublasLtMatmulPreferenceSetAttribute cublasLtMatrixLayoutCreate cublasLtMatrixLayoutDestroy
        cublasLtMatrixLayoutSetAttribute
    }
    Random {
        curandCreateGenerator curandDestroyGenerator curandGenerate curandGenerateLogNormal
        curandGenerateLogNormalDouble curandGenerateLongLong curandGenerateNormal curandGenerateNormalDouble
        curandGeneratePoisson curandGenerateUniform curandGenerateUniformDouble curandSetGeneratorOffset
        curandSetPseudoRandomGeneratorSeed curandSetStream
    }
    Compiler {
        nvrtcCompileProgram nvrtcCreateProgram nvrtcDestroyProgram nvrtcGetPTX nvrtcGetPTXSize
        nvrtcGetProgramLog nvrtcGetProgramLogSize
    }
    Dnn {
        cudnnActivationForward cudnnAdvInferVersionCheck cudnnAdvTrainVersionCheck cudnnAdvVersionCheck
        cudnnCnnInferVersionCheck cudnnCnnTrainVersionCheck cudnnCnnVersionCheck cudnnConvolutionBackwardData
        cudnnConvolutionBackwardFilter cudnnConvolutionBiasActivationForward cudnnConvolutionForward cudnnCreate
        cudnnCreateActivationDescriptor cudnnCreateConvolutionDescriptor cudnnCreateFilterDescriptor
        cudnnCreatePoolingDescriptor cudnnCreateReduceTensorDescriptor cudnnCreateTensorDescriptor cudnnDestroy
        cudnnDestroyConvolutionDescriptor cudnnDestroyFilterDescriptor cudnnDestroyReduceTensorDescriptor
        cudnnDestroyTensorDescriptor cudnnGetConvolutionBackwardDataAlgorithm_v7
        cudnnGetConvolutionBackwardDataWorkspaceSize cudnnGetConvolutionBackwardFilterAlgorithm_v7
        cudnnGetConvolutionBackwardFilterWorkspaceSize cudnnGetConvolutionForwardAlgorithm_v7
        cudnnGetConvolutionForwardWorkspaceSize cudnnGetCudartVersion cudnnGetReductionIndicesSize
        cudnnGetReductionWorkspaceSize cudnnGetVersion cudnnOpsInferVersionCheck cudnnOpsTrainVersionCheck
        cudnnOpsVersionCheck cudnnPoolingForward cudnnReduceTensor cudnnSetActivationDescriptor
        cudnnSetConvolution2dDescriptor cudnnSetConvolutionGroupCount cudnnSetConvolutionMathType
        cudnnSetConvolutionNdDescriptor cudnnSetFilter4dDescriptor cudnnSetFilterNdDescriptor
        cudnnSetPoolingNdDescriptor cudnnSetReduceTensorDescriptor cudnnSetStream cudnnSetTensor4dDescriptor
        cudnnSetTensor4dDescriptorEx cudnnSetTensorNdDescriptor cudnnSoftmaxForward
    }
}
