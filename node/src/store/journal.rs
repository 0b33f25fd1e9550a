//! The journal: numbered segments of frames, appended by one writer, read by anybody by position.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::error::{At, StoreError};
use super::frame::{Codec, FORMAT, Frame, FrameError, HEADER_LEN, Header, HeaderError, PREFIX_LEN};
use super::{Damage, layout};

/// How much of a segment is read at once when it is scanned.
const SCAN_WINDOW: usize = 512 * 1024;
/// The file that says that what the newest segment seems to hold may be in memory only.
const DOUBT: &str = "doubt";

/// Where a frame stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// The segment's number.
    pub(super) segment: u64,
    /// Bytes from the segment's beginning.
    pub(super) offset: u64,
    /// Bytes of the whole frame.
    pub(super) len: u32,
}

/// One file of the journal.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    file: File,
    codec: Codec,
}

/// Why the frame at a position could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// Its segment was compacted away, or lost.
    #[error("segment {0} is not there")]
    Gone(u64),
    /// The bytes are not that frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The segments by number, shared by the writer and all readers.
#[derive(Debug, Default)]
pub(super) struct Segments(RwLock<BTreeMap<u64, Arc<Segment>>>);

impl Segments {
    /// Reads one frame and checks it.
    pub(super) fn read(&self, at: Position) -> Result<Frame, ReadError> {
        let segment = self.get(at.segment).ok_or(ReadError::Gone(at.segment))?;
        if at.len as usize > PREFIX_LEN + super::frame::PAYLOAD_MAX {
            return Err(FrameError::Length(at.len).into());
        }
        let mut bytes = vec![0; at.len as usize];
        match segment.file.read_exact_at(&mut bytes, at.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(FrameError::Short.into());
            }
            done => done?,
        }
        let (frame, _) = segment.codec.decode(at.offset, &bytes)?;
        Ok(frame)
    }

    /// All segments, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Segment>> {
        self.read_lock().values().cloned().collect()
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.all().iter().filter_map(|s| s.len().ok()).sum()
    }

    fn get(&self, number: u64) -> Option<Arc<Segment>> {
        self.read_lock().get(&number).cloned()
    }

    fn read_lock(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, segment: Arc<Segment>) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(segment.number, segment);
    }

    fn remove(&self, number: u64) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.remove(&number);
    }
}

impl Segment {
    /// Bytes of the file.
    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads the frames from `from` on, which is [`HEADER_LEN`] or the end of a frame.
    pub(super) fn scan(&self, from: u64) -> io::Result<Scanner<'_>> {
        Ok(Scanner {
            segment: self,
            at: from.max(HEADER_LEN),
            end: self.len()?,
            window: Vec::new(),
            window_at: 0,
        })
    }

    /// Appends `frame` to `out` as it is to stand at `offset`.
    pub(super) fn encode(&self, frame: &Frame, offset: u64, out: &mut Vec<u8>) -> Position {
        Position {
            segment: self.number,
            offset,
            len: self.codec.encode(frame, offset, out),
        }
    }

    /// Writes everything again and syncs it. A sync that failed left pages that count as written: no
    /// later sync would write them, and every reader sees what a power cut takes away.
    fn write_again(&self) -> io::Result<()> {
        let (end, mut at) = (self.len()?, 0);
        let mut window = vec![0; SCAN_WINDOW];
        while at < end {
            let len = (end - at).min(SCAN_WINDOW as u64) as usize;
            self.file.read_exact_at(&mut window[..len], at)?;
            self.file.write_all_at(&window[..len], at)?;
            at += len as u64;
        }
        self.file.sync_all()
    }

    /// Writes a copy of the header again that is damaged; says where it is.
    pub(super) fn mend_header(&self) -> io::Result<Option<(u64, u64)>> {
        let mut bytes = [0; HEADER_LEN as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        let Some((at, good)) = Header::damaged_copy(&bytes) else {
            return Ok(None);
        };
        self.file.write_all_at(&good, at as u64)?;
        self.file.sync_data()?;
        Ok(Some((at as u64, good.len() as u64)))
    }

    /// Appends a frame of any kind and payload to `out` as it is to stand at `offset`.
    #[cfg(test)]
    pub(super) fn encode_form(&self, kind: u8, offset: u64, payload: &[u8], out: &mut Vec<u8>) {
        let payload = |out: &mut Vec<u8>| out.extend_from_slice(payload);
        self.codec.encode_form(kind, payload, offset, out);
    }

    fn open(path: &Path, number: u64) -> Result<Result<Self, HeaderError>, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .at(path)?;
        let mut bytes = vec![0; file.metadata().at(path)?.len().min(HEADER_LEN) as usize];
        file.read_exact_at(&mut bytes, 0).at(path)?;
        let header = match Header::decode(&bytes) {
            Ok(header) if header.number == number && bytes.len() as u64 == HEADER_LEN => header,
            // Of another segment, or cut short while it was begun.
            Ok(_) => return Ok(Err(HeaderError::Damaged)),
            Err(error) => return Ok(Err(error)),
        };
        Ok(Ok(Self {
            number,
            path: path.to_owned(),
            file,
            codec: Codec::new(header.salt),
        }))
    }
}

/// What a scan finds next.
#[derive(Debug)]
pub(super) enum Scanned {
    /// An intact frame.
    Frame(Position, Box<Frame>),
    /// No frame at `from`; the next one begins at `to`, which is the end of the file if there is none.
    Bad { from: u64, to: u64, why: FrameError },
}

/// Walks the frames of one segment, over damage too.
pub(super) struct Scanner<'a> {
    segment: &'a Segment,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Scanner<'_> {
    /// Where the file ended when the scan began.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The next frame or the next damage; `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Scanned>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let from = self.at;
        let found = match self.decode(from)? {
            Ok((frame, position)) => {
                self.at = from + u64::from(position.len);
                Scanned::Frame(position, Box::new(frame))
            }
            Err(why) => {
                self.at = self.next_good(from, why)?;
                Scanned::Bad {
                    from,
                    to: self.at,
                    why,
                }
            }
        };
        Ok(Some(found))
    }

    fn decode(&mut self, at: u64) -> io::Result<Result<(Frame, Position), FrameError>> {
        let codec = &self.segment.codec;
        let len = match codec.frame_len(self.window(at, PREFIX_LEN)?) {
            Ok(len) => len,
            Err(why) => return Ok(Err(why)),
        };
        let number = self.segment.number;
        Ok(codec.decode(at, self.window(at, len)?).map(|(frame, len)| {
            let position = Position {
                segment: number,
                offset: at,
                len,
            };
            (frame, position)
        }))
    }

    /// Where the next intact frame begins after the damage at `from`.
    fn next_good(&mut self, from: u64, why: FrameError) -> io::Result<u64> {
        if let FrameError::Form(_) = why {
            let codec = &self.segment.codec;
            let len = codec
                .frame_len(self.window(from, PREFIX_LEN)?)
                .unwrap_or(PREFIX_LEN);
            return Ok(from + len as u64);
        }
        let mut at = from + 1;
        while let Some(candidate) = self.find_marker(at)? {
            match self.decode(candidate)? {
                Ok(_) | Err(FrameError::Form(_)) => return Ok(candidate),
                Err(_) => at = candidate + 1,
            }
        }
        Ok(self.end)
    }

    fn find_marker(&mut self, mut at: u64) -> io::Result<Option<u64>> {
        let marker = *self.segment.codec.marker();
        loop {
            let window = self.window(at, SCAN_WINDOW)?;
            if let Some(found) = window.windows(marker.len()).position(|w| w == marker) {
                return Ok(Some(at + found as u64));
            }
            if window.len() < SCAN_WINDOW {
                return Ok(None);
            }
            at += (SCAN_WINDOW - marker.len() + 1) as u64;
        }
    }

    /// The bytes from `at` on, `len` of them or fewer at the end of the file.
    fn window(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let len = len.min(left);
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if at < held.start || at + len as u64 > held.end {
            self.window.resize(len.max(SCAN_WINDOW).min(left), 0);
            self.window_at = at;
            self.segment.file.read_exact_at(&mut self.window, at)?;
        }
        let start = (at - self.window_at) as usize;
        Ok(&self.window[start..start + len])
    }
}

/// Why a batch was not written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Nothing of it is there; the segment is as before.
    Refused(StoreError),
    /// Whether it reached the disk is unknown, and asking again would not tell: the segment is
    /// closed, the batch can be written to the next one.
    Unsynced(StoreError),
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    segments: Arc<Segments>,
    tail: Option<Tail>,
    uncut: Option<Uncut>,
    segment_bytes_max: u64,
    /// How many of the next syncs fail, as a dying disk would make them.
    #[cfg(test)]
    pub(super) failing_syncs: u32,
    /// How many of the next cuts behind a failed write fail.
    #[cfg(test)]
    pub(super) failing_cuts: u32,
}

#[derive(Debug)]
struct Tail {
    segment: Arc<Segment>,
    len: u64,
}

/// A segment with bytes behind its end that were refused.
#[derive(Debug)]
struct Uncut {
    tail: Tail,
    /// Whether it may be written to again, once they are cut off.
    good: bool,
}

impl Journal {
    /// Opens the segments in `dir`. Those without a readable header are moved to `aside` and
    /// reported, except what a crash left of a segment that never held an acknowledged frame.
    pub(super) fn open(
        dir: PathBuf,
        aside: &Path,
        segment_bytes_max: u64,
        damage: &mut Vec<Damage>,
    ) -> Result<Self, StoreError> {
        let segments = Segments::default();
        for (number, path) in segment_files(&dir)? {
            match Segment::open(&path, number)? {
                Ok(segment) => segments.insert(Arc::new(segment)),
                Err(HeaderError::Newer(found)) => {
                    return Err(StoreError::NewerVersion {
                        path,
                        found,
                        known: FORMAT,
                    });
                }
                Err(error @ HeaderError::Damaged) => set_aside(&path, aside, &error, damage)?,
            }
        }
        if dir.join(DOUBT).exists() {
            if let Some(newest) = segments.all().pop() {
                newest.write_again().at(&newest.path)?;
            }
            fs::remove_file(dir.join(DOUBT)).at(&dir)?;
        }
        Ok(Self {
            dir,
            segments: Arc::new(segments),
            tail: None,
            uncut: None,
            segment_bytes_max,
            #[cfg(test)]
            failing_syncs: 0,
            #[cfg(test)]
            failing_cuts: 0,
        })
    }

    /// The segments, for readers.
    pub(super) fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    /// Makes the newest segment the one that is appended to, and cuts off what stands after `len`; one
    /// without frames is begun anew.
    pub(super) fn resume(&mut self, len: u64) -> Result<(), StoreError> {
        let Some(segment) = self.segments.all().pop() else {
            return Ok(());
        };
        if len <= HEADER_LEN {
            // Its header may be in memory only: where the sync of a new segment fails, nothing shows
            // that to the next process, and no later sync would write it.
            fs::remove_file(&segment.path).at(&segment.path)?;
            self.segments.remove(segment.number);
            return Ok(());
        }
        if segment.len().at(&segment.path)? > len {
            segment.file.set_len(len).at(&segment.path)?;
            segment.file.sync_all().at(&segment.path)?;
        }
        self.tail = Some(Tail { segment, len });
        Ok(())
    }

    /// The segment that the next batch goes to, and the offset of its first frame.
    pub(super) fn tail(&mut self) -> Result<(Arc<Segment>, u64), StoreError> {
        self.settle()?;
        if self
            .tail
            .as_ref()
            .is_none_or(|t| t.len >= self.segment_bytes_max)
        {
            self.rotate()?;
        }
        match &self.tail {
            Some(tail) => Ok((tail.segment.clone(), tail.len)),
            None => Err(StoreError::Closed {
                path: self.dir.clone(),
            }),
        }
    }

    /// Begins a new segment.
    pub(super) fn rotate(&mut self) -> Result<(), StoreError> {
        let newest = self.segments.all().last().map_or(0, |s| s.number);
        self.tail = None;
        let segment = Arc::new(self.create(newest + 1)?);
        self.segments.insert(segment.clone());
        self.tail = Some(Tail {
            segment,
            len: HEADER_LEN,
        });
        Ok(())
    }

    /// Cuts off, durably, what a failed write left. Before that is done nothing may be acknowledged,
    /// not even that something is there already: the next start could find the frames that were
    /// refused, among them one that takes it away.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        let Some(Uncut { tail, .. }) = &self.uncut else {
            return Ok(());
        };
        let Tail { segment, len } = tail;
        #[cfg(test)]
        if let Some(fewer) = self.failing_cuts.checked_sub(1) {
            self.failing_cuts = fewer;
            return Err(StoreError::io(
                &segment.path,
                io::Error::from_raw_os_error(5),
            ));
        }
        let cut = segment.file.set_len(*len);
        let cut = cut.and_then(|()| segment.file.sync_all());
        cut.at(&segment.path)?;
        fs::remove_file(self.dir.join(DOUBT)).ok();
        self.tail = self
            .uncut
            .take()
            .and_then(|uncut| uncut.good.then_some(uncut.tail));
        Ok(())
    }

    /// Appends `bytes`, which were encoded for what [`Journal::tail`] said, and makes them durable.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let Some(mut tail) = self.tail.take() else {
            let path = self.dir.clone();
            return Err(WriteError::Refused(StoreError::Closed { path }));
        };
        let path = tail.segment.path.clone();
        if let Err(error) = tail.segment.file.write_all_at(bytes, tail.len) {
            // Frames after a torn one would be lost with it.
            self.cut_off(tail, true);
            return Err(WriteError::Refused(StoreError::io(path, error)));
        }
        if let Err(error) = self.sync(&tail.segment) {
            // The kernel has marked the pages clean: a second fdatasync would succeed without
            // having written anything.
            self.cut_off(tail, false);
            return Err(WriteError::Unsynced(StoreError::io(path, error)));
        }
        tail.len += bytes.len() as u64;
        self.tail = Some(tail);
        Ok(())
    }

    fn cut_off(&mut self, tail: Tail, good: bool) {
        // For the next process of this boot, should this one end before the cut.
        File::create(self.dir.join(DOUBT)).ok();
        self.uncut = Some(Uncut { tail, good });
        if let Err(error) = self.settle() {
            tracing::warn!(%error, "journal: nothing is acknowledged until a failed write is cut off");
        }
    }

    /// Deletes a segment whose live frames stand elsewhere by now; one with damage is kept aside.
    pub(super) fn retire(
        &mut self,
        segment: &Segment,
        damaged: bool,
        aside: &Path,
    ) -> Result<(), StoreError> {
        // It may be gone from an attempt whose last step failed.
        match segment.path.exists() {
            true if damaged => drop(layout::move_aside(&segment.path, aside)?),
            true => fs::remove_file(&segment.path).at(&segment.path)?,
            false => {}
        }
        layout::sync_dir(&self.dir)?;
        // Last: while its file may still be there, later segments must not be compacted. They say
        // which of its frames were taken back.
        self.segments.remove(segment.number);
        Ok(())
    }

    fn create(&self, number: u64) -> Result<Segment, StoreError> {
        let path = self.dir.join(format!("{number:08}.log"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = match options.open(&path) {
            // What an earlier attempt left when the disk was full; no frame is in it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path).and_then(|()| options.open(&path))
            }
            opened => opened,
        }
        .at(&path)?;
        let header = Header {
            number,
            salt: rand::random(),
        };
        file.write_all_at(&header.encode(), 0).at(&path)?;
        file.sync_all().at(&path)?;
        layout::sync_dir(&self.dir)?;
        Ok(Segment {
            number,
            path,
            file,
            codec: Codec::new(header.salt),
        })
    }

    #[cfg(not(test))]
    fn sync(&self, segment: &Segment) -> io::Result<()> {
        segment.file.sync_data()
    }

    #[cfg(test)]
    fn sync(&mut self, segment: &Segment) -> io::Result<()> {
        if self.failing_syncs > 0 {
            self.failing_syncs -= 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        segment.file.sync_data()
    }
}

/// Whether a segment in `dir` has an intact header of this format.
pub(super) fn any_intact(dir: &Path) -> bool {
    let files = segment_files(dir).unwrap_or_default();
    let mut opened = files
        .iter()
        .map(|(number, path)| Segment::open(path, *number));
    opened.any(|segment| matches!(segment, Ok(Ok(_))))
}

/// The segments' files by number; other names are not the journal's.
fn segment_files(dir: &Path) -> Result<BTreeMap<u64, PathBuf>, StoreError> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let path = entry.at(dir)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name
            .and_then(|name| name.strip_suffix(".log"))
            .filter(|digits| digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        if let Some(number) = number {
            files.insert(number, path);
        }
    }
    Ok(files)
}

fn set_aside(
    path: &Path,
    aside: &Path,
    why: &HeaderError,
    damage: &mut Vec<Damage>,
) -> Result<(), StoreError> {
    if fs::metadata(path).at(path)?.len() <= HEADER_LEN {
        return fs::remove_file(path).at(path);
    }
    let moved_to = layout::move_aside(path, aside)?;
    damage.push(Damage::Segment {
        path: path.to_owned(),
        why: why.to_string(),
        moved_to,
    });
    Ok(())
}
