-- Tells the relay of a stream's messages before they come.
--
-- A stream's bytes go on as they come, so an unfinished message lies in the relay, whose gRPC library tells nobody of it. Before each message of
-- LARGE bytes or more, of which not all is here yet, this filter puts a message of its own into the stream: a zero byte, with which no protobuf
-- message begins, a word that no caller knows (the relay gets it in `dormouse-begins`), and the size. The relay reads on when it has room.
--
-- Up to four bytes of a prefix wait here for the rest of it. bootstrap.py puts UNARY, LARGE and LARGEST in front.

local WORD
do
  local source = assert(io.open("/dev/urandom", "rb"))
  WORD = source:read(16):gsub(".", function(c) return string.format("%02x", c:byte()) end)
  source:close()
end

local function framed(text)                        -- as gRPC frames a message; shorter than 256 bytes
  return "\0\0\0\0" .. string.char(#text) .. text
end

local function watch(h)
  local hd = h:headers()
  if UNARY[hd:get(":path")] then return end
  hd:replace("dormouse-begins", WORD)
  hd:remove("content-length")                      -- it may become more
  local kept, skip = "", 0                         -- the beginning of a prefix; bytes that are still to come of the message before it
  for chunk in h:bodyChunks() do
    local size = chunk:length()
    if kept == "" and skip >= size then
      skip = skip - size
    else
      local data = kept .. chunk:getBytes(0, size)
      local out, from, at = {}, 0, skip
      while at + 5 <= #data do
        local a, b, c, d = data:byte(at + 2, at + 5)
        local length = ((a * 256 + b) * 256 + c) * 256 + d
        if length >= LARGE and length <= LARGEST and at + 5 + length > #data then
          out[#out + 1] = data:sub(from + 1, at)
          out[#out + 1] = framed("\0" .. WORD .. string.format("%d", length))
          from = at
        end
        at = at + 5 + length
      end
      local stop = math.min(at, #data)
      out[#out + 1] = data:sub(from + 1, stop)
      if #out > 1 or kept ~= "" or stop < #data then chunk:setBytes(table.concat(out)) end
      kept, skip = data:sub(stop + 1), at - stop
    end
  end
end

function envoy_on_request(h)
  local ok, problem = pcall(watch, h)
  if not ok then h:logErr("messages.lua: " .. tostring(problem)) end
end
