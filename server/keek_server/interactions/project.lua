-- Applies rows of the log to one generation of the projection, in one step with its watermark.
--
-- KEYS[1]  lease: the token of the projector that may write
-- KEYS[2]  state of the generation: a hash whose field `seq` is the watermark
-- ARGV[1]  the caller's token
-- ARGV[2]  how long the lease holds from now on, milliseconds
-- ARGV[3]  watermark that the caller read the rows behind
-- ARGV[4]  the generation's key prefix; its hash tag keeps all keys in one slot
-- ARGV[5]  limits: videos that trend everywhere, in one scope, interactions in a history, videos
--          seen, interactions remembered as counted
-- ARGV[6]  the rows as MessagePack:
--          [seq, user, video, "kind:time:video", window, "window:kind:video", x, x_rising, [scope, ...]]
--          x is log2 of what the row adds to trending; what follows the first four is absent when it
--          adds nothing, and the scopes when there are none
-- ARGV[7]  what the last row is recognised by, kept with the watermark
--
-- Returns the watermark that stands afterwards; nil when the lease is another's by now.
--
-- The result depends on the order of the rows alone, not on how they are split into calls: what is
-- trimmed is trimmed at the row that makes it too long.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return false
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local standing = redis.call('HGET', KEYS[2], 'seq') or '-1'
if standing ~= ARGV[3] then
  return tonumber(standing)
end

local call, log = redis.call, math.log
local prefix = ARGV[4]
local history_prefix, seen_prefix, counted_prefix =
  prefix .. 'history:', prefix .. 'seen:', prefix .. 'counted:'
local trending_limit, scope_limit, history_limit, seen_limit, counted_limit =
  unpack(cjson.decode(ARGV[5]))
-- A user with fewer rows than this has nothing to trim.
local few = math.min(history_limit, seen_limit, counted_limit)
-- A board grows this much over its limit before the weakest go, all at once.
local SLACK = 1000
local LOG2 = log(2)

-- What the rows add, by scope: videos in the order of the rows, and the addends of each.
local boards, scopes_in_order = {}, {}

local function collect(scope, video, x, x_rising)
  local board = boards[scope]
  if not board then
    board = {videos = {}, x = {}, x_rising = {}, count = 0}
    boards[scope] = board
    scopes_in_order[#scopes_in_order + 1] = scope
  end
  local count = board.count + 1
  board.count, board.videos[count], board.x[count], board.x_rising[count] = count, video, x, x_rising
end

-- Forward decay (Cormode et al., "Forward Decay", 2009) with scores kept as log2, so that nothing
-- overflows and late events are exact: a weight w at time t adds w * 2^(t/half_life).
local function log2_add(a, b)
  if a < b then
    a, b = b, a
  end
  return a + log(1 + 2 ^ (b - a)) / LOG2
end

local function put_together(key, videos, addends, scores)
  local arguments, placed, count = {}, {}, 0
  for i = 1, #videos do
    local video = videos[i]
    local place = placed[video]
    if place then
      arguments[place] = log2_add(arguments[place], addends[i])
    else
      local score = scores[i]
      placed[video] = count + 1
      arguments[count + 1] = score and log2_add(tonumber(score), addends[i]) or addends[i]
      arguments[count + 2] = video
      count = count + 2
    end
  end
  -- Redis writes numbers with the 17 digits that make them exact.
  call('ZADD', key, unpack(arguments))
end

local function put_one_by_one(key, videos, addends, limit)
  for i = 1, #videos do
    local score = call('ZSCORE', key, videos[i])
    call('ZADD', key, score and log2_add(tonumber(score), addends[i]) or addends[i], videos[i])
    if call('ZCARD', key) > limit + SLACK then
      call('ZREMRANGEBYRANK', key, 0, -limit - 1)
    end
  end
end

local function put(key, videos, addends, limit)
  local scores = call('ZMSCORE', key, unpack(videos))
  -- Counts a new video more than once at worst: then the slower way is taken a little early, to the
  -- same result.
  local added = 0
  for i = 1, #videos do
    if not scores[i] then
      added = added + 1
    end
  end
  if call('ZCARD', key) + added > limit + SLACK then
    put_one_by_one(key, videos, addends, limit)
  else
    put_together(key, videos, addends, scores)
  end
end

local rows = cmsgpack.unpack(ARGV[6])
for i = 1, #rows do
  local row = rows[i]
  local user, video, x = row[2], row[3], row[7]
  local length = call('RPUSH', history_prefix .. user, row[4])
  call('ZADD', seen_prefix .. user, row[1], video)
  if length > few then
    call('LTRIM', history_prefix .. user, -history_limit, -1)
    call('ZREMRANGEBYRANK', seen_prefix .. user, 0, -seen_limit - 1)
  end
  if x then
    -- One user counts once per video, kind and window.
    local counted = counted_prefix .. user
    if call('ZADD', counted, 'NX', row[5], row[6]) == 1 then
      if length > few then
        call('ZREMRANGEBYRANK', counted, 0, -counted_limit - 1)
      end
      collect('', video, x, row[8])
      local scopes = row[9]
      if scopes then
        for j = 1, #scopes do
          collect(scopes[j], video, x, row[8])
        end
      end
    end
  end
end

for i = 1, #scopes_in_order do
  local scope = scopes_in_order[i]
  local board = boards[scope]
  local limit = scope == '' and trending_limit or scope_limit
  put(prefix .. 'trending:' .. scope, board.videos, board.x, limit)
  put(prefix .. 'rising:' .. scope, board.videos, board.x_rising, limit)
end

local last = string.format('%.0f', rows[#rows][1])
call('HSET', KEYS[2], 'seq', last, 'tail', ARGV[7])
return tonumber(last)
