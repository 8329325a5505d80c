//! Whatever stands where a segment of records should be: Parquet and Avro, read whole and by a range of time.
#![no_main]

use std::sync::{Arc, LazyLock};

use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use tidelog::segment::{Filter, Format, SegmentReader};

/// What is fetched ahead is a task.
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));

// The Parquet decoder is known to panic on damaged bytes, and the reader catches that (`guarded`). libFuzzer's hook would end
// the process all the same; a panic that nobody catches still does.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |bytes: &[u8]| {
    RUNTIME.block_on(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = "segment".into();
        store.put(&path, bytes.to_vec().into()).await.expect("memory takes it");
        for format in [Format::Parquet, Format::Avro] {
            for filter in [Filter::default(), Filter { timestamps: Some(1_100..1_150), ..Filter::default() }] {
                let opened = SegmentReader::open(Arc::clone(&store), &path, bytes.len() as u64, format, filter).await;
                let Ok(mut reader) = opened else { continue };
                while let Ok(Some(_)) = reader.next().await {}
            }
        }
    });
});
