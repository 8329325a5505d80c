//! What was made of the last objects that readers ask for a piece of, one piece after the other.
//!
//! Only objects that never change are kept so, and few of them: who reads on asks for the next one soon.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::path::Path;
use tokio::sync::OnceCell;

use crate::error::{Error, Result};

/// So many are kept: those over which one reader that reads ahead is spread.
const MOST: usize = 6;

type Made = Arc<dyn Any + Send + Sync>;

/// What was made of the last objects, the newest last.
#[derive(Default)]
pub(super) struct Kept(Mutex<VecDeque<(Path, Arc<OnceCell<Made>>)>>);

impl fmt::Debug for Kept {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Kept")
    }
}

impl Kept {
    /// The place of an object, which is the newest from now on.
    fn place(&self, key: &Path) -> Arc<OnceCell<Made>> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = places.iter().position(|(kept, _)| kept == key);
        let (key, cell) = at.and_then(|at| places.remove(at)).unwrap_or_else(|| (key.clone(), Arc::default()));
        places.push_back((key, Arc::clone(&cell)));
        if places.len() > MOST {
            places.pop_front();
        }
        cell
    }

    /// What is kept of an object now.
    pub(super) fn now<T: Send + Sync + 'static>(&self, key: &Path) -> Option<Arc<T>> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, cell) = places.iter().find(|(kept, _)| kept == key)?;
        Arc::clone(cell.get()?).downcast().ok()
    }

    fn forget(&self, key: &Path) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(kept, _)| kept != key);
    }
}

impl Kept {
    /// What is kept of an object, or what `read` gives of it now; none if that is nothing.
    pub(super) async fn get<T: Send + Sync + 'static>(
        &self,
        key: &Path,
        read: impl AsyncFnOnce() -> Result<Option<T>>,
    ) -> Result<Option<Arc<T>>> {
        let read = async || match read().await {
            Ok(made) => made.map(|made| Arc::new(made) as Made).ok_or(None),
            Err(error) => Err(Some(error)),
        };
        match self.place(key).get_or_try_init(read).await.cloned() {
            Ok(made) => Ok(made.downcast().ok()),
            Err(error) => {
                self.forget(key);
                error.map_or(Ok(None), |error: Error| Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::store::Store;

    #[tokio::test]
    async fn an_object_is_made_once_while_it_is_kept_and_what_is_not_there_is_looked_for_again() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let key = |n: usize| Path::from(format!("n{n}"));
        let made = async |n: usize| store.made_of(&key(n), |bytes| Ok(bytes.len())).await.expect("no error");
        assert_eq!(made(0).await, None);
        for n in 0..=MOST {
            store.put(&key(n), vec![1; n + 1].into()).await.expect("stored");
            assert_eq!(made(n).await.as_deref(), Some(&(n + 1)));
        }
        for n in 0..=MOST {
            store.delete(&key(n)).await.expect("deleted");
        }
        assert_eq!(made(0).await, None, "it was the oldest");
        // The look for it has taken the place of the second one for a while.
        assert_eq!(made(MOST).await.as_deref(), Some(&(MOST + 1)));
        assert_eq!(store.made_before::<usize>(&key(MOST)).as_deref(), Some(&(MOST + 1)));
        assert_eq!(store.made_before::<usize>(&key(0)), None);
        let failed = store.made_of(&key(MOST + 1), |_| Ok(0)).await.expect("no error");
        assert_eq!(failed, None);
        store.put(&key(MOST + 1), vec![1].into()).await.expect("stored");
        let error = store.made_of::<usize>(&key(MOST + 1), |_| Err(Error::new(Kind::Corrupt, "no"))).await;
        assert!(error.is_err());
        assert_eq!(made(MOST + 1).await.as_deref(), Some(&1), "an error is not kept");
    }
}
